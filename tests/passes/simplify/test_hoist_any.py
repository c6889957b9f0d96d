"""hoist on any small module that repeats a user for the candidates: the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from loka_compile.passes.simplify.hoist import Hoist
from tests.passes.exact import agrees
from tests.passes.simplify.test_hoist import N

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

CHAIN = {
    "linear": lambda m, x: m.square(x),
    "relu": lambda m, x: F.relu(x, inplace=False),
    "relu_": lambda m, x: F.relu(x + 0, inplace=True),
    "gate": lambda m, x: x * x.sigmoid(),
    "norm": lambda m, x: m.norm(x),
    "rms": lambda m, x: F.rms_norm(x, (4,), m.scale),
    "softmax": lambda m, x: x.softmax(-1),
    "heads": lambda m, x: x.unflatten(-1, (2, 2)).transpose(-1, -2).flatten(-2),
    "slice": lambda m, x: torch.cat([x[..., 2:], x[..., :2]], dim=-1),
    "split": lambda m, x: torch.stack(list(x.split(2, -1)), -1).flatten(-2),
    "parameter": lambda m, x: x + m.scale,
    "mean": lambda m, x: x - x.mean(-1, keepdim=True),
    "matmul": lambda m, x: x @ m.square.weight,
}
MEET = {
    "cat": lambda m, u, i: m.both(torch.cat([u, i], -1)),
    "cat thrice": lambda m, u, i: m.thrice(torch.cat([i, u, i], -1)),
    "two users": lambda m, u, i: m.thrice(torch.cat([u, i, u.relu()], -1)),
    "users alone": lambda m, u, i: m.both(torch.cat([u, u * 2], -1)) * i,
    "times": lambda m, u, i: m.square(u * i),
    "dot": lambda m, u, i: m.square(u) * i,
}
SOURCES = {
    "one": ((1, 4), lambda u: u.expand(N, -1), (N, 4)),
    "repeated": ((1, 4), lambda u: u.repeat(N, 1), (N, 4)),
    "a batch each": ((3, 4), lambda u: u.repeat_interleave(N, 0), (3 * N, 4)),
    "tiled": ((3, 4), lambda u: u.repeat(N, 1), (3 * N, 4)),
    "lists": ((3, 4), lambda u: u.unsqueeze(1).expand(-1, N, -1), (3, N, 4)),
    "lists, flat": ((3, 4), lambda u: u.unsqueeze(1).expand(-1, N, -1).reshape(-1, 4), (3 * N, 4)),
    "history": ((1, 2, 4), lambda u: u.expand(N, -1, -1), (N, 2, 4)),
}


class Small(nn.Module):
    def __init__(self, source, first, meet, last):
        super().__init__()
        torch.manual_seed(0)
        self.square, self.norm, self.scale = nn.Linear(4, 4), nn.LayerNorm(4), nn.Parameter(torch.randn(4))
        self.both, self.thrice = nn.Linear(8, 4), nn.Linear(12, 4, bias=False)
        self.source, self.first, self.meet, self.last = source, first, meet, last

    def forward(self, user, item):
        user = SOURCES[self.source][1](user)
        for name in self.first:
            user = CHAIN[name](self, user)
        out = MEET[self.meet](self, user, item)
        for name in self.last:
            out = CHAIN[name](self, out)
        return out, user.sum()


chains = st.lists(st.sampled_from(sorted(CHAIN)), max_size=4)


@given(st.sampled_from(sorted(SOURCES)), chains, st.sampled_from(sorted(MEET)), chains, st.sampled_from([None, True]))
# A size that was read before what has it was made.
@example("history", ["heads", "parameter"], "users alone", ["heads", "parameter"], True)
@settings(
    max_examples=16,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is compiled: shrinking one takes minutes
)
def test_any_small_module_keeps_its_numbers(free, source, first, meet, last, dynamic):
    torch._dynamo.reset()
    user, _, item = SOURCES[source]
    torch.manual_seed(2)
    seen = agrees(Hoist(), Small(source, first, meet, last), torch.randn(user), torch.randn(item), dynamic=dynamic)
    if {"linear", "norm", "rms", "matmul"} & set(first) or meet != "times":
        assert seen.did


class Strided(nn.Module):
    """The result is read by its strides: every other row, as they lie in memory."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, user):
        wide = self.linear(user.expand(N, -1))
        return wide.as_strided((N // 2, 8), (16, 1)) + wide.view(-1)[: N // 2].unsqueeze(1)


def test_what_reads_strides_sees_those_that_were():
    assert agrees(Hoist(), Strided(), torch.randn(1, 6)).did
