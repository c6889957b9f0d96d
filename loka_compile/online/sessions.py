"""All sessions that live: one for each set of parameters in each graph, whatever the sizes it was compiled for."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from loka_compile import compat
from loka_compile.graph.sites import module_name
from loka_compile.online.memory import Memory
from loka_compile.online.session import Session
from loka_compile.spec.options import Options

_sessions: weakref.WeakValueDictionary[Any, Session] = weakref.WeakValueDictionary()  # they live with compiled code


def learns(options: Options, inputs: Sequence[Any]) -> bool:
    """Whether a graph's plan is learned from its calls: not with a plan or a profile, with `measure_calls=0`, without
    recipes, or outside a compilation by Dynamo."""
    given = options.plan is not None or options.profile is not None
    return not given and bool(options.measure_calls and options.recipes) and compat.is_compiling_frame()


class Sessions:
    """The sessions of one graph: one for each model that calls it."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options) -> None:
        self.options = options
        self._structure = structure_of(gm, [value for value in inputs if isinstance(value, nn.Parameter)])

    def new(self) -> Session:
        """One that nobody has yet. On disk those of one structure are told apart by the order in which they come."""
        others = sum(key[:2] == self._key((), 0)[:2] for key in _sessions)
        name = f"{self._structure}-{others}" if others else self._structure
        return Session(Memory(name), self.options)

    def find(self, parameters: Sequence[Tensor], weights: int) -> Session | None:
        """The session of who has these parameters. weights: how many the graph takes, parameters and others: numbers
        that a module holds are weights of one graph and constants of the next."""
        return _sessions.get(self._key(parameters, weights))

    def keep(self, parameters: Sequence[Tensor], weights: int, session: Session) -> None:
        _sessions[self._key(parameters, weights)] = session

    def _key(self, parameters: Sequence[Tensor], weights: int) -> tuple[Any, ...]:
        return (self._structure, self.options.fingerprint, weights, *map(id, parameters))


def forget_sessions() -> None:
    """torch._dynamo.reset(): what was compiled is gone, and so is what was learned."""
    _sessions.clear()


def structure_of(gm: fx.GraphModule, parameters: Sequence[Tensor]) -> str:
    """Digest of what a graph does to tensors, equal in every process and for every batch size."""
    steps = [
        (_name(node.target), module_name(node))
        for node in gm.graph.nodes
        if node.op not in ("placeholder", "output") and isinstance(node.meta.get("example_value"), Tensor)
    ]
    shapes = [(tuple(parameter.shape), str(parameter.dtype)) for parameter in parameters]
    return hashlib.sha256(repr((steps, shapes, torch.is_grad_enabled())).encode()).hexdigest()[:24]


def _name(target: Any) -> str:
    """A name without an address in it. Methods of torch's own classes have no module, but a class (__objclass__)."""
    if isinstance(target, str):
        return target
    home = getattr(target, "__module__", None) or getattr(target, "__objclass__", type(target)).__qualname__
    return f"{home}.{getattr(target, '__name__', target)}"
