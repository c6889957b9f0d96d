"""The command as a whole, on few ratings; stopped and gone on with."""

import json
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress

from examples.lattice import __main__ as command
from examples.lattice.data import DataError
from examples.lattice.kept import Kept
from examples.lattice.pipeline import arms, run, stages, timing
from tests.examples.lattice.networks.small import SCHEMA, double, inputs, network

ARGS = ["run", "--quick", "--seed", "2", "--trials", "2"]
ARMS = [
    "separate",
    "separate, longer",
    "merged",
    "merged, untied",
    "consolidated",
]  # at this seed the few ratings make one group


@pytest.mark.slow
def test_a_run_keeps_its_stages_and_goes_on(tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "run")]
    stopped = pytest.raises(KeyboardInterrupt)
    with monkeypatch.context() as patch, stopped:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(timing, "timing", stop)
        command.main([*ARGS, *out])
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["more"]
    assert list(kept) == ["partition", "filter", "sketch", "teacher", *ARMS]

    def never(*_, **__):
        raise AssertionError("what is kept was made again")

    with monkeypatch.context() as patch:
        patch.setattr(arms, "arm", never)
        found = command.main([*ARGS, *out])
    assert [*found["arms"]] == ARMS and {*found["timing"]} == {"training", "serving"}
    for of in found["timing"].values():
        assert {name: {*times} for name, times in of.items()} == {"separate": {"eager"}, "consolidated": {"eager"}}
    assert len(found["arms"]["separate"]["flops_by_model"]) == 6
    assert found["teacher"]["hits"] > 0.5 > found["teacher"]["learned"] and found["teacher"]["tested"] > 0.5
    assert len(found["filter"]["kept"]) == 8
    for arm in found["arms"].values():
        assert all(0 < each["auc"] < 1 for each in arm["portfolios"].values())
    assert "## AUC by portfolio" in (tmp_path / "run" / "report.md").read_text()
    model, said = arms.load(tmp_path / "run" / "group 0.safetensors")
    assert said["tasks"] == ("liked", "loved") and model.schema.known == 16 and not model.training
    with pytest.raises(DataError, match="other settings"):
        command.main([*ARGS, *out, "--seed", "3"])
    with monkeypatch.context() as patch:  # more trials: what was decided before them is kept, what follows is not
        patch.setattr(stages, "grouped", never)
        patch.setattr(stages, "filtered", never)
        patch.setattr(stages, "taught", never)
        patch.setattr(arms, "arm", lambda which, *_: trained.append(len(which)) or found["arms"]["merged"])
        trained: list[int] = []
        more = command.main([*ARGS, "--trials", "3", *out])
    assert more["sketch"]["tried"] == 3 and trained == [6, 6, 1, 1, 1]


def stage(tmp_path):
    return run.Stages(Kept(tmp_path / "run.json", {}), Progress(disable=True), "")


def test_a_stage_is_run_again_only_where_its_options_changed(tmp_path):
    made = []
    for features, seconds in ((3, 1.0), (3, 1.0), (4, 1.0), (4, (1, 2)), (4, (1, 2))):
        of = stage(tmp_path)  # as another process would
        of.once("filter", lambda f=features: made.append(f) or {"kept": f}, features=features, seconds=seconds)
    assert made == [3, 4, 4]


def test_a_stage_is_run_again_where_its_file_is_not_its_own(tmp_path):
    made, path = [], tmp_path / "network"

    def make():
        made.append(path.write_text("mine"))
        return {"files": {"network": stages.digest(path)}}

    for spoil in (lambda: None, lambda: None, lambda: path.write_text("another's"), path.unlink):
        spoil()
        stage(tmp_path).once("arm", make, width=8)
    assert len(made) == 3 and path.read_text() == "mine"


def test_the_partition_has_the_split_of_the_seed(tmp_path, monkeypatch):
    def stop(*of):
        raise InterruptedError(of)

    monkeypatch.setattr(stages, "load", stop)
    options = command.parse(["run", "--data", "clothing", "--seed", "7"])
    with pytest.raises(InterruptedError) as asked:
        run.run(options, stage(tmp_path), tmp_path)
    assert asked.value.args == (("clothing", False, 7),)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "--features", "0"], "expected 1 or more, got 0"),
        (["run", "--trials", "0"], "expected 1 or more, got 0"),
        (["run", "--latency", "0"], "expected more than 0, got 0"),
        (["run", "--latency", "nan"], "expected more than 0, got nan"),
        (["run", "--quality", "nan"], "expected a number from 0 to 1, got nan"),
        (["run", "--seed", "-1"], "expected a whole number from 0 to below 2^32, got -1"),
        (["run", "--quality", "1.5"], "expected a number from 0 to 1, got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(argv, said, capsys):
    with pytest.raises(SystemExit):
        command.parse(argv)
    assert said in capsys.readouterr().err


def test_errors_and_interruptions_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.json").write_text('{"settings": {"data": "clothing"}, "runs": {}, "more": {}}')
    argv = ["run", "--quick", "--out", str(tmp_path)]
    assert command.shell(argv) == 2 and "figures of other settings" in capsys.readouterr().err
    (tmp_path / "run.json").write_text('{"settings"')
    assert command.shell(argv) == 2 and "cannot be read" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command.shell(["run", "--out", str(tmp_path / "file")]) == 2 and "is a file" in capsys.readouterr().err

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "main", stop)
    assert command.shell(argv) == 130 and "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("ml-100k lies in the package recbole:\n  pip install it"),
        PermissionError(13, "not yours", "run.json"),
        ModuleNotFoundError("No module named 'pyarrow'"),
        DataError("agreement needs finite gradients"),
        OSError(),
    ],
)
def test_whatever_is_missing_is_one_line(error, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(run, "main", fail)
    assert command.shell(["run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) > len("error: \n")


@pytest.mark.parametrize("fault", [AssertionError, ValueError])
def test_a_fault_of_the_program_shows_where(fault, monkeypatch):
    def fail(_):
        raise fault("a fault")

    monkeypatch.setattr(run, "main", fail)
    with pytest.raises(fault):
        command.shell(["run"])


@pytest.mark.slow
def test_loka_serves_and_trains_with_the_numbers_of_eager(op_by_op):
    """All of its passes, without code generation."""
    schema = replace(SCHEMA, known=0)  # of a teacher's hits some are dropped at random
    model, of = network(schema=schema).double(), double(inputs(12, schema))
    call = arms.BACKENDS["loka"]["training"](model)
    with torch.no_grad():
        torch.testing.assert_close(call(*of), model(*of))
    found = []
    for each in (model, call):
        model.zero_grad()
        each(*of).square().sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*found)
