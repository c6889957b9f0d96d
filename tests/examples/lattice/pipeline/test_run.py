"""The command as a whole, on few ratings; stopped and gone on with."""

import json
from dataclasses import replace

import pytest
import torch

from examples.lattice import __main__ as command
from examples.lattice.data import DataError
from examples.lattice.pipeline import arms, run, timing
from tests.examples.lattice.networks.small import SCHEMA, double, inputs, network

ARGS = ["run", "--quick", "--trials", "2"]


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
    assert list(kept) == list(run.STAGES)

    def never(*_, **__):
        raise AssertionError("what is kept was made again")

    with monkeypatch.context() as patch:
        patch.setattr(arms, "arm", never)
        found = command.main([*ARGS, *out])
    assert {*found["arms"]} == {*run.ARMS} and {*found["timing"]} == {"training", "serving"}
    for of in found["timing"].values():
        assert {name: {*times} for name, times in of.items()} == {"separate": {"eager"}, "consolidated": {"eager"}}
    assert len(found["arms"]["separate"]["flops_by_model"]) == 6
    assert found["teacher"]["hits"] > 0.5 and len(found["filter"]["kept"]) == 8
    for arm in found["arms"].values():
        assert all(0 < each["auc"] < 1 for each in arm["portfolios"].values())
    assert "## AUC by portfolio" in (tmp_path / "run" / "report.md").read_text()
    with pytest.raises(DataError, match="other settings"):
        command.main([*ARGS, *out, "--seed", "2"])


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
