"""The mods: what each finds, what it leaves and why, the same numbers in both forms, and never silently."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import loka_compile as loka
from examples.apart import APART
from loka_compile.mods.adapt import BlockNorm
from loka_compile.passes.adapt.block_norm import block_norm, block_of
from loka_compile.passes.adapt.mods import MODS, modified

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

ALL = tuple(MODS)
B = 7  # a prime batch


class Tower(nn.Module):
    """Two linears with a norm and an activation between, and a head."""

    def __init__(self, width=512, activation=None, norm=nn.LayerNorm):
        super().__init__()
        self.up, self.norm, self.act = nn.Linear(32, width), norm(width), activation or nn.SiLU()
        self.down, self.head = nn.Linear(width, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.down(self.act(self.norm(self.up(x)))).relu())


class Gated(nn.Module):
    """A swish gate written by hand, twice, and a product that is none."""

    def forward(self, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        return n * n.sigmoid(), torch.sigmoid(m) * m, m * n.sigmoid()


def changes_of(model, *args, mods=ALL, dynamic=None):
    """What the mods did to each Dynamo graph of one call."""
    found = []

    def backend(gm, inputs):
        changed, changes = modified(gm, mods)
        found.append((changed, {change.name: change for change in changes}))
        return changed.forward

    out = torch.compile(model, backend=backend, dynamic=dynamic, **APART)(*args)
    return found, out


def subjects(change):
    return [each.site for each in change.result.rewrites], {r.site: r.reason for r in change.result.rejects}


def calls(graph, target):
    return [node for node in graph.nodes if node.target is target]


# ---------------------------------------------------------------- each mod


@pytest.mark.parametrize("dynamic", [None, True])
def test_all_biases_go_but_the_heads(dynamic):
    ((_, changes),), _ = changes_of(Tower(), torch.randn(B, 32), mods=("no_bias",), dynamic=dynamic)
    done, left = subjects(changes["no_bias"])
    assert done == ["up", "norm", "down"]
    assert left == {"head": "a final head keeps its bias: no GEMM comes after it"}


def test_every_head_of_many_keeps_its_bias():
    class Tasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.click, self.buy = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 1)

        def forward(self, x):
            hidden = self.trunk(x).relu()
            return self.click(hidden).sigmoid(), self.buy(hidden)

    ((_, changes),), _ = changes_of(Tasks(), torch.randn(B, 8), mods=("no_bias",))
    done, left = subjects(changes["no_bias"])
    assert done == ["trunk"] and set(left) == {"click", "buy"}


def into(h, y):
    h.copy_(y)


def into_a_view(h, y):
    h.view(-1, 2, 4)[:, 0] = y[:, :4]


@torch.no_grad()
def into_out(h, y):
    torch.mul(y, 2, out=h)


def of_a_list(h, y):
    torch._foreach_add_([h], [y])


@pytest.mark.parametrize("write", [into, into_a_view, into_out, of_a_list])
def test_a_product_may_read_what_was_written_by_then(write):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.late = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = torch.zeros_like(x)
            write(h, self.up(x))
            down = self.down(h)
            write(h, self.late(x))
            return down, h

    ((_, changes),), _ = changes_of(Written(), torch.randn(B, 8), mods=("no_bias",))
    done, left = subjects(changes["no_bias"])
    assert done == ["up"] and set(left) == {"down", "late"}


def test_a_bias_that_is_computed_stays():
    def generated(x, w, b):
        return F.linear(F.linear(x, w, b * 2), w)

    ((_, changes),), _ = changes_of(generated, torch.randn(B, 8), torch.randn(8, 8), torch.randn(8), mods=("no_bias",))
    done, left = subjects(changes["no_bias"])
    assert not done and any("its bias is computed (mul)" in each for each in left.values())


@pytest.mark.parametrize(
    ("n", "block"), [(1, 1), (100, 100), (256, 256), (512, 256), (768, 256), (640, 160), (1000, 0), (258, 0)]
)
def test_blocks(n, block):
    assert block_of(n) == block


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_become_blocks(norm):
    model, x = Tower(norm=norm), torch.randn(B, 32)
    ((changed, changes),), out = changes_of(model, x, mods=("block_norm",))
    assert subjects(changes["block_norm"]) == (["norm"], {})
    assert not calls(changed.graph, F.layer_norm)
    eps = 1e-5
    rows = model.up(x).unflatten(1, (2, 256)).double()
    normed = (rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(1).float()
    torch.testing.assert_close(out, model.head(model.down(model.act(normed)).relu()))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm(1000), "N = 1000 has no divisor of at most 256 that is a multiple of 16"),
        (nn.LayerNorm((4, 250)), r"it normalises over (4, 250)"),
    ],
)
def test_norms_that_stay(norm, reason):
    ((_, changes),), _ = changes_of(nn.Sequential(norm), torch.randn(B, *norm.normalized_shape), mods=("block_norm",))
    done, left = subjects(changes["block_norm"])
    assert not done and left["0"].startswith(reason)


def test_swish_in_all_its_forms():
    n, m = torch.randn(B, 8), torch.randn(B, 8)
    ((changed, changes),), out = changes_of(Gated(), n, m, mods=("hard_swish",))
    assert len(changes["hard_swish"].result.rewrites) == 2 and len(calls(changed.graph, F.hardswish)) == 2
    for found, expected in zip(out, (F.hardswish(n), F.hardswish(m), m * n.sigmoid()), strict=True):
        torch.testing.assert_close(found, expected)


def test_blocks_specification():
    x = torch.randn(3, 5, 512, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block_norm(x[..., :32], 16), (x[:1, :1],))
    assert block_norm(torch.zeros(2, 512), 256).count_nonzero() == 0
    outlier = torch.ones(1, 512)
    outlier[0, 0] = 1e6
    assert torch.allclose(block_norm(outlier, 256)[0, 256:], torch.ones(256))  # hurts its own block only


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ALL)
def test_twice_is_once_and_nothing_is_nothing(name):
    def again(gm, inputs):
        once, (first,) = modified(gm, (name,))
        twice, (second,) = modified(once, (name,))
        assert first.result.rewrites and not second.result.rewrites
        assert [n.target for n in once.graph.nodes] == [n.target for n in twice.graph.nodes]
        return twice.forward

    torch.compile(Tower(), backend=again)(torch.randn(B, 32))
    ((_, changes),), _ = changes_of(lambda x: x.cos() * 2, torch.randn(B), mods=(name,))
    assert changes[name].result.rewrites == changes[name].result.rejects == ()


def test_without_mods_the_graph_is_the_very_same():
    def backend(gm, inputs):
        assert modified(gm, ()) == (gm, ())
        return gm.forward

    torch.compile(Tower(), backend=backend)(torch.randn(B, 32))


def test_a_graph_break_has_a_head_in_each_part():
    class Broken(Tower):
        def forward(self, x):
            x = self.up(x)
            torch._dynamo.graph_break()
            return self.head(self.down(x))

    found, _ = changes_of(Broken(), torch.randn(B, 32), mods=("no_bias",))
    assert [subjects(changes["no_bias"])[0] for _, changes in found] == [[], ["down"]]


# ---------------------------------------------------------------- compiled, and as modules


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
