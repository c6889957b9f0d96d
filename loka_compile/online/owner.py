"""Whose call it is: the tensors that a plan was made for, recognised when the compiled graph is called.

Dynamo hands one compiled graph to all instances of a class, to equal layers that are compiled one by one, and to a
model whose weights were loaded anew. Who calls is known at the call only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loka_compile import compat
from loka_compile.online import steps

SAMPLE = 64
"""Values of a tensor that are compared where its version does not tell."""
GLANCE = 3
"""Values of a tensor on a CPU that are read at a call."""
REPLACED = 0.1
"""A relative change of the sample from which on a tensor that keeps changing counts as another one."""
STRICT = 3
"""Changes of a tensor that are checked one and all; one that changes more often is compared by its sample."""

State = tuple[int, int, int]


class Owner:
    """One set of parameters, buffers and other weights. Holds none of them."""

    def __init__(self, tensors: Sequence[Tensor], written: Collection[int] = (), loose: Collection[int] = ()) -> None:
        """written: places of those that the graph itself writes, whose values tell nothing. loose: of those that may
        be data after all: they are if they change from call to call while these are measured."""
        steps.follow([tensor for tensor in tensors if isinstance(tensor, nn.Parameter)])
        self._written = frozenset(written)
        self._loose = set(loose)
        self._told = [place for place in range(len(tensors)) if place not in self._written]
        self._changes = [0] * len(tensors)
        self._calls = 0
        self.take(tensors)

    def take(self, tensors: Sequence[Tensor]) -> None:
        """From now on these are meant, with the values they have."""
        self.gone: set[int] = set()
        """Places of those whose memory nobody has any more: they died, or have other memory."""
        self._all_tell = not self._written and not any(tensor.is_inference() for tensor in tensors)
        kept = [place for place in range(len(tensors)) if place not in self._loose and place not in self._written]
        self._memory = {place: self._watched(place, tensors[place]) for place in kept}
        self._state = self._state_of(tensors)
        self._samples = [*map(_sample, tensors)]
        self._glances = [*map(_Glance.at, tensors, self._state)]
        self._usual: list[int] | None = None

    def _watched(self, place: int, tensor: Tensor) -> compat.Memory:
        gone = self.gone  # of this time: what is taken later has a set of its own
        return compat.memory_of(tensor, lambda _: gone.add(place))

    @property
    def alive(self) -> bool:
        """Whether all of them are there, with the memory they had."""
        return not self.gone

    def _state_of(self, tensors: Sequence[Tensor]) -> list[State]:
        """Which tensors they are, how often each was written, and where it lies."""
        if self._all_tell:
            return [(id(x), x._version, x.data_ptr()) for x in tensors]
        return [
            (0, 0, 0) if place in self._written else (id(x), 0 if x.is_inference() else x._version, x.data_ptr())
            for place, x in enumerate(tensors)
        ]

    def replaced(self, tensors: Sequence[Tensor], training: bool, measuring: bool = False) -> bool:
        """Whether these are other tensors than before, or have other values than training steps made of them.

        A step of a torch optimizer is known as one. What else changes values in training is told by a sample of them;
        in inference it counts, however little it changes, until the same tensor was replaced `STRICT` times. One that
        is written behind its version's back is found when its turn comes: at each call one tensor is looked at.
        """
        state = self._state_of(tensors)
        if self.gone or (state != self._state and not self._is_usual(state, training)):
            pairs = enumerate(zip(self._state, state, strict=True))
            changed = [i for i, (old, new) in pairs if old != new or i in self.gone]
            if measuring and (data := self._loose.intersection(changed)):
                self._take_for_data(data)
                return self.replaced(tensors, training, measuring)
            replaced = any(self._is_replaced(i, tensors[i], state[i], training) for i in changed)
            if replaced:
                for place in changed:
                    self._changes[place] += 1
                return True
            self._hold_anew(tensors)
            if training:
                self._usual = _versions(self._state, state)
        self._state = state
        return not training and bool(self._told) and self._written_unseen(tensors)

    def _hold_anew(self, tensors: Sequence[Tensor]) -> None:
        """Those that have other memory and count as the same."""
        for place in tuple(self.gone):
            self.gone.discard(place)
            self._memory[place] = self._watched(place, tensors[place])
            steps.follow([x for x in (tensors[place],) if isinstance(x, nn.Parameter)])

    def _take_for_data(self, places: Collection[int]) -> None:
        self._written |= frozenset(places)
        self._all_tell = False
        self._told = [place for place in self._told if place not in places]
        self._loose -= set(places)
        self._state = [(0, 0, 0) if place in places else state for place, state in enumerate(self._state)]

    def _is_usual(self, state: list[State], training: bool) -> bool:
        """The same tensors, each written as often as between two training steps that were looked at: nothing new."""
        return training and self._usual is not None and _versions(self._state, state) == self._usual

    def _is_replaced(self, place: int, tensor: Tensor, new: State, training: bool) -> bool:
        old = self._state[place]
        same = old[0] == new[0] and old[2] == new[2] and place not in self.gone
        if same and isinstance(tensor, nn.Parameter) and steps.only_steps(tensor, since=old[1]):
            return False
        if training or self._changes[place] >= STRICT:
            return not _alike(tensor, self._samples[place])
        return True

    def _written_unseen(self, tensors: Sequence[Tensor]) -> bool:
        self._calls += 1
        place = self._told[self._calls % len(self._told)]
        glance, state = self._glances[place], self._state[place]
        if glance.state == state and glance.holds():
            return False
        self._glances[place] = _Glance.at(tensors[place], state)
        if glance.state != state:  # training steps since: these values are to compare with from now on
            return False
        self._changes[place] += 1
        return self._changes[place] <= STRICT or not _alike(tensors[place], self._samples[place])


def speaks(args: Sequence[Any]) -> bool:
    """Whether a call tells what later ones are like: it has rows, and values that are not all one and the same. Ids
    tell as much as numbers do: a model of ids may get nothing else than ones for its mask, or no seconds at all."""
    given = [x for x in args if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.dim()]
    if any(x.shape[0] == 0 for x in given):
        return False
    values = [x for x in given if x.layout is torch.strided and x.numel() > 1]
    numbers = any(x.is_floating_point() for x in values)
    return not numbers or any(bool((x != x.flatten()[0]).any()) for x in values)


def _versions(before: list[State], now: list[State]) -> list[int] | None:
    """How often each was written between; None where one is another tensor, or lies elsewhere."""
    pairs = list(zip(before, now, strict=True))
    if any(old[0] != new[0] or old[2] != new[2] for old, new in pairs):
        return None
    return [new[1] - old[1] for old, new in pairs]


@torch.no_grad()
def _sample(tensor: Tensor) -> Tensor:
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))  # as it lies, so that nothing is copied
    flat = tensor.detach().permute(order).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].double().cpu()


@dataclass(frozen=True)
class _Glance:
    """A few values as they lie in memory, read without torch, as one tensor's are at every call."""

    state: State
    places: tuple[int, ...]
    width: int
    bytes: list[bytes]

    @classmethod
    def at(cls, tensor: Tensor, state: State) -> _Glance:
        size, width = tensor.numel(), tensor.element_size()
        at_hand = size and not tensor.is_cuda and tensor.is_contiguous()
        parts = [size * part // (GLANCE + 1) for part in range(1, GLANCE + 1)] if at_hand else []
        places = tuple(tensor.data_ptr() + place * width for place in parts)
        return cls(state, places, width, [ctypes.string_at(place, width) for place in places])

    def holds(self) -> bool:
        """For a tensor that is in use and in the same state."""
        return [ctypes.string_at(place, self.width) for place in self.places] == self.bytes


def _alike(tensor: Tensor, sample: Tensor) -> bool:
    now = _sample(tensor)
    return now.shape == sample.shape and float((now - sample).norm()) <= REPLACED * float(sample.norm())
