"""How sure the times of a race are.

Its rounds are two races, the even ones and the odd ones. On a quiet machine the fastest times of both agree within a
percent. Where they do not, other work was in the way: rounds go on for longer, and a verdict that such a difference
could turn round holds for this process alone and is taken again by the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loka_compile.dispatch.steady import is_noisy

ROUNDS, MAX_ROUNDS = 5, 31
ENOUGH_SECONDS, DISTURBED_SECONDS = 1.0, 4.0
"""Rounds go on until they took this long, within these counts; for longer where other work was in the way."""
CLEAR = 1.25
"""Or until one is so many times faster than every other. As much below a graph's floor is surely faster than it."""
STEADY = 1.03
"""How many times the fastest of one half may be that of the other."""


class Times(list[float]):
    """The fastest call of each graph. spread: how many times longer it took in the slower half, at most."""

    def __init__(self, halves: Sequence[Sequence[float]]) -> None:
        """The fastest call of each graph in each half of the rounds. A half without rounds tells nothing."""
        super().__init__(min(each) for each in zip(*halves, strict=True))
        pairs = [(min(each), max(each)) for each in zip(*halves, strict=True)]
        self.spread = max((high / low if low else math.inf for low, high in pairs), default=1.0)

    @property
    def noisy(self) -> bool:
        """Whether other work ran while the fastest call of one of them was timed."""
        return any(map(is_noisy, self))

    @property
    def steady(self) -> bool:
        return self.spread <= STEADY

    def settles(self, ratio: float) -> bool:
        """Whether times as unsure as these may stand for the verdict `ratio >= 1`, or `ratio < 1`."""
        return self.steady or not 1 / self.spread < ratio < self.spread


def go_on(fastest: Times, rounds: int, most: int, seconds: float) -> bool:
    """Whether another round may tell more of which graph is the fastest."""
    if fastest.steady or most <= ROUNDS:
        return rounds < most and seconds < ENOUGH_SECONDS and _close(fastest, CLEAR)
    return rounds < 4 * most and seconds < DISTURBED_SECONDS and _close(fastest, max(CLEAR, fastest.spread))


def _close(times: Times, factor: float) -> bool:
    """Whether another one than the fastest may turn out to be it."""
    first, *others = sorted(times)
    return not others or others[0] < factor * first
