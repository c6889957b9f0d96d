"""CompSkip: what is not proven is refused with its reason, and a schedule that fits no layer is an error."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import loka_compile as loka
from tests.passes.adapt.sequences import Attention, B, D, Layer, Pool, Sequences, Stack, inputs, skipped

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def refused(model, schedule, *args):
    """The one reason, where the schedule skips one branch."""
    _, [(before, after, result)] = skipped(model, schedule, *args)
    assert [n.name for n in before.nodes] == [n.name for n in after.nodes] and not result.rewrites
    [reject] = result.rejects
    return reject.reason


ONE = {"layers": "blocks.*", "skip": {"0": ["branch"]}}


class One(nn.Module):
    """One block whose branch is called as `forward` says; the branch is a linear unless given."""

    def __init__(self, forward, branch=None):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"branch": branch or nn.Linear(D, D)})])
        self.call = forward

    def forward(self, x):
        return self.call(self.blocks[0]["branch"], x)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1.0)
        return x + x.tanh()


class Two(nn.Module):
    def forward(self, x):
        return x + x.tanh(), x.sin()


class Doubled(nn.Module):
    def forward(self, x):
        return x.double().tanh()


def with_consumer(branch, x):
    y = branch(x)
    return x + y, y.sum()


@pytest.mark.parametrize(
    ("forward", "branch", "reason"),
    [
        (lambda m, x: m(x), None, "other consumers than a residual add|no residual add"),
        (with_consumer, None, "linear has other consumers than a residual add: add|y has other consumers"),
        (lambda m, x: x + m(x).relu(), None, r"goes into relu \(relu\)"),
        (lambda m, x: x.cos() + m(x), None, "which is not its own input"),
        (lambda m, x: (y := x[:, :1]) + m(y), nn.Linear(1, D), r"is \(5, 1\), .* is \(5, 8\)"),
        (lambda m, x: x + m(x), Doubled(), "is torch.float32 on cpu, .* is torch.float64"),
        (lambda m, x: m(x), Buffered(), "writes into"),
        (lambda m, x: torch.cat(m(x)), Two(), "2 of its values are read outside"),
        (lambda m, x: x + m(x), nn.BatchNorm1d(D, track_running_stats=True), "add_ writes into .*num_batches_tracked"),
    ],
    ids=["no add", "consumer", "relu", "foreign", "broadcast", "dtype", "buffer", "two values", "batch norm"],
)
def test_what_is_not_proven_is_refused(forward, branch, reason):
    found = refused(One(forward, branch), ONE, torch.randn(B, D))
    assert re.search(reason, found), found


def test_a_reuse_of_another_shape_is_refused():
    model, (x, s) = Sequences(2), inputs()
    model.layers[1].pool = Pool(tokens=3)
    _, [(_, _, result)] = skipped(model, {"layers": "layers.*", "reuse": {"1": ["pool"]}}, x, s)
    [reject] = result.rejects
    assert "is (5, 2, 8)" in reject.reason and "is (5, 3, 8)" in reject.reason


def test_layers_side_by_side_have_nothing_to_reuse():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D)])

        def forward(self, x, s):
            return self.experts[0](x).sum() + self.experts[1](s[:, 0]).sum()

    class Wrapped(Experts):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(D, D)) for _ in range(2)])

    _, [(_, _, result)] = skipped(Wrapped(), {"layers": "experts.*", "reuse": {"1": ["0"]}}, *inputs())
    assert "side by side" in result.rejects[0].reason


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"layers": "blocks.*", "skip": {"even": ["attention"]}}, r"is a layer blocks.\* .nearest: 'layers.\*'"),
        ({"layers": "layers.*", "skip": {"even": ["atention"]}}, "contains a module 'atention' .nearest: 'attention'"),
        ({"layers": "layers.*", "skip": {"7": ["attention"]}}, "'7' matches none of the layers 0, 1, 2, 3"),
        ({"layers": "layers.*", "reuse": {"0": ["pool"]}}, "pool: no layer before 0 has such"),
        ({"layers": "layers.*", "skip": {"all": ["pool"]}, "reuse": {"odd": ["pool"]}}, "both skipped and reused"),
    ],
)
def test_a_wrong_schedule_is_an_error(schedule, message, op_by_op):
    compiled = torch.compile(Sequences(), backend="loka", options={"compskip": schedule, "recipes": ()})
    with pytest.raises(Exception, match=message) as caught:
        compiled(*inputs())
    assert isinstance(getattr(caught.value, "inner_exception", caught.value), loka.OptionsError)


def test_alternate_says_what_it_could_not_find():
    with pytest.raises(Exception, match=r"expected one list of two or more layers.*none among blocks\.\*"):
        skipped(Stack(2), "alternate", torch.randn(B, D))


def test_alternate_refuses_between_two():
    class Twice(Layer):
        def __init__(self):
            super().__init__()
            self.attention_b = Attention()

        def forward(self, x, s):
            s = self.attention_b(self.attention(self.pffn(x, s)))
            return x + self.pool(s).mean(1), s

    model = Sequences(2)
    model.layers = nn.ModuleList([Twice(), Twice()])
    with pytest.raises(Exception, match="attention, attention_b could all be the attention of a layer"):
        skipped(model, "alternate", *inputs())
