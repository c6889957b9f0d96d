"""Mods compiled, and as modules: the same numbers both ways, checkpoints that load, and an explanation that tells."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.mods.adapt import BlockNorm
from tests.passes.adapt.test_mods import ALL, B, Tower, changes_of, subjects

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def step(model, call, x):
    model.zero_grad()
    out = call(x)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mods", [*((name,) for name in ALL), ALL])
def test_both_forms_give_the_same_numbers_forward_and_backward(mods, op_by_op):
    torch.manual_seed(0)
    model, x = Tower(), torch.randn(B, 32)
    compiled = torch.compile(model, backend="loka", options={"mods": mods, "recipes": ()})
    out, grads = step(model, compiled, x)
    plain, _ = step(model, model, x)
    assert not torch.allclose(out, plain, rtol=1e-3)  # it is another model

    twin = Tower()
    twin.load_state_dict(model.state_dict())
    report = loka.adapt(twin, (x,), mods=mods)
    expected, twins = step(twin, twin, x)
    torch.testing.assert_close(out, expected)
    assert set(twins) == set(grads) == {name for name, _ in twin.named_parameters()}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, twins[name])
    assert report.changed and "head" not in report.changed


def test_explain_never_keeps_it_quiet(op_by_op):
    model, x = Tower(), torch.randn(B, 32)
    compiled = torch.compile(model, backend="loka", options={"mods": ALL, "recipes": ()})
    with torch.no_grad():
        compiled(x)
    text = " ".join(str(loka.explain(compiled)).split())
    assert "no_bias CHANGED THE MODEL: without bias: up, norm, down; head not: a final head keeps its bias" in text
    assert "block_norm CHANGED THE MODEL: RMSNorm over blocks of 256: norm" in text
    assert "hard_swish CHANGED THE MODEL: hard swish: act" in text
    stages = {stage.name: stage for stage in loka.records(compiled)[0].stages}
    assert stages["hard_swish"].graph == "dynamo" and "-" in stages["hard_swish"].diff


def test_what_is_adapted_is_gone_and_a_checkpoint_still_loads():
    model, x = Tower(), torch.randn(B, 32)
    checkpoint = {name: value.clone() for name, value in model.state_dict().items()}
    report = loka.adapt(model, (x,), mods=ALL)
    assert report.dropped == ("down.bias", "norm.bias", "norm.weight", "up.bias")
    assert set(model.state_dict()) == {"up.weight", "down.weight", "head.weight", "head.bias"}
    assert isinstance(model.norm, BlockNorm) and isinstance(model.act, nn.Hardswish)
    assert repr(model.norm) == "BlockNorm(512, block=256, eps=1e-05)"
    with pytest.warns(UserWarning, match="4 of the checkpoint's entries are no longer.*down.bias, norm.bias"):
        model.load_state_dict(checkpoint)
    assert torch.equal(model.up.weight, checkpoint["up.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="4 of the checkpoint's entries"):
        pickle.loads(pickle.dumps(model)).load_state_dict(checkpoint)
    assert "4 parameters dropped" in str(report) and "head as it was: a final head keeps its bias" in str(report)


def test_what_is_written_out_in_a_forward_is_reported():
    class Written(Tower):
        def forward(self, x):
            hidden = F.layer_norm(self.up(x), (512,))
            return self.head(self.down(F.silu(hidden)))

    report = loka.adapt(Written(), (torch.randn(B, 32),), mods=ALL)
    assert report.changed == {"up": "without bias", "down": "without bias"}
    assert "written out in the forward of a Written" in report.kept["self"]


def test_a_module_that_is_a_head_in_one_place_keeps_its_bias():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    model = Shared()
    assert loka.adapt(model, (torch.randn(B, 8),), mods=("no_bias",)).changed == {} and model.layer.bias is not None


def test_an_unknown_mod():
    with pytest.raises(loka.OptionsError, match="nearest: 'block_norm'"):
        loka.adapt(Tower(), (torch.randn(B, 32),), mods=("blocknorm",))


class Checkpointed(Tower):
    def forward(self, x):
        hidden = torch.utils.checkpoint.checkpoint(lambda x: self.act(self.norm(self.up(x))), x, use_reentrant=False)
        return self.head(self.down(hidden))


def test_what_runs_inside_of_a_checkpoint_is_not_left_in_silence():
    with pytest.warns(UserWarning, match="no_bias: self: tag_activation_checkpoint calls a graph of its own"):
        found, _ = changes_of(Checkpointed(), torch.randn(B, 32), mods=("no_bias",))
    changed, rejected = subjects(found[0][1]["no_bias"])
    assert changed == ["down"] and "tag_activation_checkpoint" in rejected["self"]
