"""The command as a whole, on few ratings; stopped and gone on with."""

import json

import pytest
import torch

from examples.lattice import __main__ as command
from examples.lattice.data import DataError
from examples.lattice.pipeline import arms, run

ARGS = ["run", "--quick", "--trials", "2"]


@pytest.mark.slow
def test_a_run_keeps_its_stages_and_goes_on(tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "run")]
    stopped = pytest.raises(KeyboardInterrupt)
    with monkeypatch.context() as patch, stopped:

        def serving(*_):
            raise KeyboardInterrupt

        patch.setattr(arms, "serving", serving)
        command.main([*ARGS, *out])
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["more"]
    assert list(kept) == list(run.STAGES[:-1])

    def never(*_, **__):
        raise AssertionError("what is kept was made again")

    with monkeypatch.context() as patch:
        patch.setattr(arms, "arm", never)
        found = command.main([*ARGS, *out])
    assert set(found["arms"]) == set(run.ARMS) and len(found["arms"]["separate"]["flops_by_model"]) == 6
    assert found["teacher"]["hits"] > 0.5 and len(found["filter"]["kept"]) == 8
    for arm in found["arms"].values():
        assert all(0 < each["auc"] < 1 for each in arm["portfolios"].values())
    assert "## AUC by portfolio" in (tmp_path / "run" / "report.md").read_text()
    with pytest.raises(DataError, match="other settings"):
        command.main([*ARGS, *out, "--seed", "2"])


def test_every_backend_gives_the_same_logits(op_by_op):
    """loka's passes, without code generation; Inductor would generate code."""
    from tests.examples.lattice.networks.small import inputs, network

    model, of = network().eval(), inputs(6)
    with torch.no_grad():
        expected = model(*of)
        torch.testing.assert_close(arms.BACKENDS["loka"]["training"](model)(*of), expected, rtol=1e-4, atol=1e-5)
    assert set(arms.BACKENDS) == {"eager", "inductor", "loka"}
