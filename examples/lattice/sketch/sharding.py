"""How to shard each layer: the fastest way through the strategies that fits a memory budget.

OPT[l, s, r] = min over s' of OPT[l - 1, s', r - memory(l, s)] + seconds(l, s) + change(l, s', s), the standard form of
the dynamic programme that the notes sketch [I]. Memory is not cut into steps: for each (layer, strategy) those
(seconds, bytes) are kept that no other beats in both, so the answer is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


class ShardingError(ValueError):
    """No way through the strategies fits."""


@dataclass(frozen=True)
class Layer:
    """seconds, memory (bytes): of this layer under each strategy it can have; infinite where it cannot be had."""

    name: str
    seconds: Mapping[str, float]
    memory: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.seconds or set(self.seconds) != set(self.memory):
            raise ShardingError(
                f"{self.name}: expected seconds and memory of the same strategies, at least one; got "
                f"{sorted(self.seconds)} and {sorted(self.memory)}"
            )
        for what, of in (("seconds", self.seconds), ("memory", self.memory)):
            wrong = {strategy: number for strategy, number in of.items() if not number >= 0}  # nan is neither
            if wrong:
                raise ShardingError(f"{self.name}: expected {what} that are numbers and not negative, got {wrong}")


@dataclass(frozen=True)
class Sharding:
    """One strategy a layer; seconds and bytes of all."""

    strategies: tuple[str, ...]
    seconds: float
    memory: int


@dataclass(frozen=True)
class _Way:
    """A way up to some layer, as a chain back to the first."""

    seconds: float
    memory: int
    strategy: str
    before: _Way | None


Change = Callable[[int, str, str], float]
"""Seconds of communication in front of layer i (from 1 on) when strategies change from one to another."""


def shard(layers: Sequence[Layer], change: Change, budget: int) -> Sharding:
    """The fastest way within `budget` bytes; of equally fast ones the one with the least memory."""
    if not layers:
        raise ShardingError("there is no layer to shard")
    if math.isnan(budget):  # no error of sharding, which a search takes for a size that does not fit
        raise ValueError(f"expected bytes as a budget, got {budget}")
    ways: dict[str, list[_Way]] = {}
    for index, layer in enumerate(layers):
        following = {}
        for strategy, seconds in layer.seconds.items():
            memory = layer.memory[strategy]
            if index:
                moved = {before: _checked(layer, before, strategy, change(index, before, strategy)) for before in ways}
                found = [
                    _Way(way.seconds + seconds + moved[before], way.memory + memory, strategy, way)
                    for before, each in ways.items()
                    for way in each
                ]
            else:
                found = [_Way(seconds, memory, strategy, None)]
            following[strategy] = _best([way for way in found if way.memory <= budget and way.seconds < math.inf])
        if not any(following.values()):
            raise ShardingError(_why_not(layers[: index + 1], budget))
        ways = following
    fastest = min((way for each in ways.values() for way in each), key=lambda way: (way.seconds, way.memory))
    strategies, at = [], fastest
    while at is not None:
        strategies.append(at.strategy)
        at = at.before
    return Sharding(tuple(reversed(strategies)), fastest.seconds, fastest.memory)


def _checked(layer: Layer, before: str, after: str, seconds: float) -> float:
    if not seconds >= 0:
        raise ValueError(
            f"{layer.name}: expected seconds of a change from {before} to {after} that are a number and not negative, "
            f"got {seconds}"
        )
    return seconds


def _why_not(layers: Sequence[Layer], budget: int) -> str:
    """What keeps each way up to the last of these layers from being taken."""
    last = layers[-1].name
    fast = [[each.memory[s] for s, seconds in each.seconds.items() if seconds < math.inf] for each in layers]
    least = sum(min(memory, default=math.inf) for memory in fast)
    if budget < least < math.inf:
        return f"no strategies fit {budget} bytes: up to {last} the smallest take {least} bytes"
    return f"up to {last} every way within {budget} bytes takes infinitely long: no strategies can be had"


def _best(ways: list[_Way]) -> list[_Way]:
    """Those that no other beats in seconds and memory."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda way: (way.seconds, way.memory)):
        if not kept or way.memory < kept[-1].memory:
            kept.append(way)
    return kept
