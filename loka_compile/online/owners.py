"""Whose call it is: the parameters that a plan was checked for, recognised when the compiled graph is called.

Dynamo hands one compiled graph to all instances of a class, to equal layers that are compiled one by one, and to a
model whose weights were loaded anew. Who calls is known at the call only.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SAMPLE = 64
"""Values of a parameter that are compared once it was written."""
REPLACED = 0.5
"""A relative change of the sample from which on a parameter counts as another one; a training step changes less."""

State = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class _Owner:
    """One set of parameters. state: version and address of each; samples: some values of each when it was checked."""

    parameters: tuple[weakref.ref[Tensor], ...]
    state: State
    samples: tuple[Tensor, ...]


class Owners:
    """The sets of parameters that the plan in force was made or checked for, those of these inputs the first."""

    def __init__(self, inputs: Sequence[Any], written: Collection[int] = ()) -> None:
        """written: places of the inputs that the graph itself writes, whose values tell nothing."""
        self._places = tuple(i for i, x in enumerate(inputs) if isinstance(x, nn.Parameter) and i not in written)
        self._known: dict[tuple[int, ...], _Owner] = {}
        self._checks: dict[tuple[int, ...], int] = {}
        self.add(inputs)

    def know(self, args: Sequence[Any], training: bool) -> bool:
        """Whether the plan holds for the parameters of this call.

        In training values change with every step, so only the parameters themselves are compared. In inference a
        parameter that was written since is compared by a sample of its values: after a training step it is still the
        same, after a checkpoint was loaded it is another one.
        """
        parameters = [args[place] for place in self._places]
        owner = self._known.get(tuple(map(id, parameters)))
        if owner is None or not all(k() is p for k, p in zip(owner.parameters, parameters, strict=True)):
            return False
        if training:
            return True
        state = _state(parameters)
        if state != owner.state:
            if not all(map(_alike, parameters, owner.samples)):
                return False
            owner.state = state
        return True

    def checked(self, args: Sequence[Any], enough: int) -> None:
        """A call of parameters that are not known went well; after `enough` of these they are."""
        key = tuple(id(args[place]) for place in self._places)
        self._checks[key] = self._checks.get(key, 0) + 1
        if self._checks[key] >= enough:
            del self._checks[key]
            self.add(args)

    def add(self, args: Sequence[Any]) -> None:
        parameters = [args[place] for place in self._places]
        dead = [key for key, owner in self._known.items() if any(known() is None for known in owner.parameters)]
        for key in dead:
            del self._known[key]
        owner = _Owner(tuple(map(weakref.ref, parameters)), _state(parameters), tuple(map(_sample, parameters)))
        self._known[tuple(map(id, parameters))] = owner


def speaks(args: Sequence[Any]) -> bool:
    """Whether a call tells what later ones are like: it has rows, and values that are not all one and the same."""
    given = [x for x in args if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.dim()]
    if any(x.numel() == 0 for x in given):
        return False
    numbers = [x for x in given if x.is_floating_point() and x.layout is torch.strided and x.numel() > 1]
    return not numbers or any(bool((x != x.flatten()[0]).any()) for x in numbers)


def _state(parameters: Sequence[Tensor]) -> State:
    return tuple((0 if p.is_inference() else p._version, p.data_ptr()) for p in parameters)


@torch.no_grad()
def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].double().cpu()


def _alike(parameter: Tensor, sample: Tensor) -> bool:
    return float((_sample(parameter) - sample).norm()) <= REPLACED * float(sample.norm())
