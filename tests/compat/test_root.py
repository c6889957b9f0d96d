"""A module's path is that of the model, whatever its methods call the model."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import fx, nn

from loka_compile.compat import name_root
from loka_compile.graph.sites import module_name

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def noted(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    return call


class Model(nn.Module):
    def __init__(s) -> None:
        super().__init__()
        s.s, s.net = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))

    def forward(s, x):
        y = s.s(x)
        torch._dynamo.graph_break()
        return s.net(y)

    def score(me, x, s=None):
        return me.net(x)

    @noted
    def wrapped(this, x):
        return this.net(x)


class Scorer:
    """No module itself."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(it, x):
        return it.net(x)


def paths(fn) -> list[tuple[str, str]]:
    """By graph: what the frame calls the root, and the module of its linear."""
    found = []

    def backend(gm: fx.GraphModule, inputs):
        root = name_root(gm)
        found.extend((root, module_name(node)) for node in gm.graph.nodes if "linear" in str(node.target))
        return gm.forward

    torch.compile(fn, backend=backend)(torch.randn(2, 4))
    return found


def test_the_name_of_self_is_no_part_of_a_path() -> None:
    model = Model()
    assert paths(model) == [("s", "s"), ("s", "net.0")]  # the rest behind a graph break too
    assert paths(model.score) == [("me", "net.0")]
    assert paths(Scorer(model.net).__call__) == [("it", "net.0")]


def test_other_names_stay_in_front() -> None:
    model = Model()

    def step(x, net=model.net):
        return net(x)

    def around(x):
        return model.net(x)

    assert {root for root, _ in paths(step) + paths(around)} == {""}
    assert paths(step)[0][1] == "net.0" and paths(around)[0][1] == "model.net.0"


def test_outside_of_a_compilation_nothing_is_renamed() -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))
    assert name_root(graph) == ""
