"""What a search is asked for: the space of its values, what a model costs, and the bounds of both cost and quality."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

EXPONENT = 0.003
Values = Mapping[str, object]
Report = Callable[[int, float], None]
"""Called by training with a step and the AUC so far; leaves the training where it is pruned."""


@dataclass(frozen=True)
class Between:
    """Numbers from low to high; `log` spaces proposals evenly in the logarithm, `whole` takes integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low <= high, and both positive with log; got {self}")
        if self.whole and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"expected whole numbers as low and high of a range of whole numbers; got {self}")


Space = Mapping[str, Between | tuple[object, ...]]
"""By hyper-parameter a range, or the values it can have: None, numbers, texts, or tuples and the like of them, which
JSON can say. A search that is not kept in a file takes others, too."""
PLAIN = bool | int | float | str | None


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space, as Optuna says it."""
    return {name: _distribution(of) for name, of in space.items()}


def _distribution(of: Between | tuple[object, ...]) -> BaseDistribution:
    if isinstance(of, tuple):
        told = tuple(told_of(choice) for choice in of)
        texts = [each for each in told if isinstance(each, str)]
        if len(set(texts)) < len(texts):
            raise ValueError(f"expected values that JSON tells apart, got {of}")
        return CategoricalDistribution(told)
    if of.whole:
        return IntDistribution(int(of.low), int(of.high), log=of.log)
    return FloatDistribution(of.low, of.high, log=of.log)


def told_of(choice: object) -> object:
    """A value as Optuna is told it, in memory and in a file alike: plain ones as they are, others as JSON's text. (A
    file would give a tuple back as a list, which is none of the values of the space.)"""
    if isinstance(choice, PLAIN):
        return choice
    try:
        return json.dumps(choice)
    except TypeError:  # no file can hold it
        return choice


def choices_of(of: Between | tuple[object, ...]) -> tuple[object, ...]:
    """The values that are listed; none of a range."""
    return of if isinstance(of, tuple) else ()


def values_of(space: Space, told: Mapping[str, object]) -> dict[str, object]:
    """By name the values of the space that Optuna's are."""
    return {name: _value(of, told[name]) for name, of in space.items()}


def _value(of: Between | tuple[object, ...], told: object) -> object:
    return next((each for each in choices_of(of) if not isinstance(each, PLAIN) and told_of(each) == told), told)


@dataclass(frozen=True)
class Cost:
    """flops of a sample, seconds of an answer: counted, modelled or measured, but before training. Infinite seconds:
    there is no way to run it."""

    flops: float
    seconds: float

    def __post_init__(self) -> None:
        if not (0 < self.flops < math.inf and self.seconds >= 0):  # nan is neither
            raise ValueError(f"expected flops above 0 and seconds of 0 or more, both numbers; got {self}")


@dataclass(frozen=True)
class Bounds:
    """quality: the least AUC; latency: the most seconds."""

    quality: float
    latency: float

    def __post_init__(self) -> None:
        if math.isnan(self.quality) or math.isnan(self.latency):
            raise ValueError(f"expected numbers as bounds, got {self}")

    def over(self, cost: Cost) -> float:
        """By how many seconds a cost is over the latency; 0 or less: it is quick enough."""
        return cost.seconds - self.latency if cost.seconds < math.inf else math.inf


def score(auc: float, flops: float) -> float:
    """AUC / FLOPs^0.003, the paper's law: twice the FLOPs must bring 0.2 % of AUC."""
    return auc / flops**EXPONENT
