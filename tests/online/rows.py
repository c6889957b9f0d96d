"""Who is compiled: the rows of the matrix of ways of use (matrix.py)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 512
"""So that a linear fills DistributedDataParallel's first bucket, of a megabyte, and the next one is another's."""
RAW = 3e4
"""Scale of a raw feature that a story's second parameters ignore: a plan made for the first ones is wrong there."""

# ---------------------------------------------------------------- models


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Net(nn.Module):
    """Some equal layers and a head."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Scorer(nn.Module):
    """What serves a model: it is called by another name than forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def score(self, x: Tensor) -> Tensor:
        return self.net(x)


def ignoring(net: Net) -> Net:
    """The net, having learned to ignore the raw feature."""
    with torch.no_grad():
        net.layers[0].fc.weight[:, 0] = 0
    return net


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Act:
    """Half a story: whose parameters these are, what is called, what loka may be asked about.

    raw: a feature of the inputs is. learns: steps are taken in training; where a raw feature is ignored, they would
    undo that. forgotten: before it, what was compiled is.
    """

    net: nn.Module
    call: Callable[[Tensor], Tensor]
    compiled: Any
    raw: bool = False
    learns: bool = True
    forgotten: bool = False


Prepare = Callable[[nn.Module], nn.Module]
Compile = Callable[[Any], Any]
Row = Callable[[Prepare, Compile], Iterator[Act]]


def module(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    yield Act(net, compiled, compiled)


def method(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    scorer = Scorer(prepare(Net()))
    compiled = compile(scorer.score)
    yield Act(scorer, compiled, compiled)
    yield Act(scorer, compiled, compiled)


def function(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())

    def score(x: Tensor) -> Tensor:
        return net(x) * 2

    compiled = compile(score)
    yield Act(net, compiled, compiled)
    yield Act(net, compiled, compiled)


def layer_by_layer(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    """Five equal layers; the fourth ignores what is raw for it, so that a plan of the first is wrong for it."""
    net = Net(5)
    with torch.no_grad():
        net.layers[2].fc.bias[0] = RAW
        net.layers[3].fc.weight[:, 0] = 0
    for layer in net.layers:
        compile(layer, in_place=True)
    whole = prepare(net)
    yield Act(whole, whole, net.layers[0], learns=False)
    yield Act(whole, whole, net.layers[0], learns=False)


def two_instances(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    first, second = prepare(Net()), prepare(ignoring(Net()))
    compiled, another = compile(first), compile(second)
    yield Act(first, compiled, compiled)
    yield Act(second, another, compiled, raw=True)


def deep_copy(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    another = copy.deepcopy(compiled)
    _replace(another, lambda old, new: old.copy_(new))
    yield Act(another, another, compiled, raw=True)


def copied_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    return _replaced(prepare, compile, lambda old, new: old.copy_(new))


def data_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    def into_data(old: nn.Parameter, new: Tensor) -> None:
        old.data = new.detach().clone()

    return _replaced(prepare, compile, into_data)


def assigned_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    plain = _plain(net)
    old, new = plain.state_dict(), ignoring(Net()).state_dict()
    plain.load_state_dict({name: _like(old[name], new[name]) for name in new}, assign=True)
    yield Act(net, compiled, compiled, raw=True)


def reset(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    torch.compiler.reset()
    yield Act(net, compiled, compiled, forgotten=True)


def _replaced(prepare: Prepare, compile: Compile, put: Callable[[Any, Tensor], None]) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    _replace(net, put)
    yield Act(net, compiled, compiled, raw=True)


def _replace(net: nn.Module, put: Callable[[Any, Tensor], None]) -> None:
    """Other weights, that ignore the raw feature, into the parameters of a net."""
    with torch.no_grad():
        for old, new in zip(net.parameters(), ignoring(Net()).parameters(), strict=True):
            put(old, _like(old, new))


def _like(old: Tensor, new: Tensor) -> Tensor:
    if not hasattr(old, "placements"):
        return new
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(new.detach(), old.device_mesh, old.placements)


def _plain(net: nn.Module) -> nn.Module:
    return net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net


ROWS: dict[str, Row] = {
    "module": module,
    "method": method,
    "function": function,
    "five layers one by one": layer_by_layer,
    "two instances": two_instances,
    "deepcopy": deep_copy,
    "weights copied": copied_weights,
    "weights assigned": assigned_weights,
    "weights by .data": data_weights,
    "reset": reset,
}
