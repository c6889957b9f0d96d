"""The mods: what each finds, what it leaves and why, alone and all together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.apart import APART
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
