"""The rounds of a race, and how sure its times are.

Its rounds are two races, the even ones and the odd ones. On a quiet machine the fastest times of both agree within a
percent. Where they do not, other work was in the way: rounds go on for longer, and a verdict that such a difference
could turn round holds for this process alone and is taken again by the next one.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.dispatch import progress
from loka_compile.dispatch.steady import Us, is_noisy, timed_us
from loka_compile.graph.rerun import own_inputs

ROUNDS, MAX_ROUNDS = 5, 31
ENOUGH_SECONDS, DISTURBED_SECONDS = 1.0, 4.0
"""Rounds go on until they took this long, within these counts; for longer where other work was in the way."""
CLEAR = 1.25
"""Or until one is so many times faster than every other. As much below a graph's floor is surely faster than it."""
STEADY = 1.03
"""How many times the fastest of one half may be that of the other."""
LAP_US, LAP_CALLS = 1_000.0, 8
"""A graph whose turn it is, is called until it took so long, at most so often."""


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


def fastest_us(
    calls: Sequence[Callable[..., Any]],
    inputs: list[Any],
    written: Collection[int],
    most: int = MAX_ROUNDS,
    least: int = ROUNDS,
) -> Times:
    """Microseconds of each graph at its fastest; they take turns, in orders drawn anew.

    Other work only adds time, and on a machine full of it mostly to whoever waits for threads: medians then told of
    two graphs, one five times as fast, that they were alike (seen).
    """
    order = random.Random(0)
    halves, rounds = ([Us(math.inf)] * len(calls), [Us(math.inf)] * len(calls)), 0
    with torch.random.fork_rng(compat.cuda_devices(inputs)):
        progress.say(f"racing {len(calls)} graphs")
        for call in calls:  # the first call generates code, quantizes weights, and does not count
            _step(call, own_inputs(inputs, written))
        start = time.perf_counter()
        while rounds < least or _go_on(Times(halves), rounds, most, time.perf_counter() - start):
            half = halves[rounds % 2]
            for index in order.sample(range(len(calls)), len(calls)):
                half[index] = min(half[index], _lap(calls[index], own_inputs(inputs, written), bool(written)))
            rounds += 1
    return Times(halves)


def _lap(call: Callable[..., Any], inputs: list[Any], writes: bool) -> Us:
    """Microseconds of the fastest call of one turn.

    The graphs whose turn it was before have filled the cache with their weights. A server calls one graph again and
    again, so a short one is timed again with its own weights there: else 8-bit weights, which are read four times
    faster, won races at batch 1 that they lose in serving (seen: 1.99x in the race, 0.9x after it). One that writes its
    inputs is called once, as a second call would have others.
    """
    step = functools.partial(_step, call, inputs)
    fastest, took, calls = timed_us(step), 0.0, 1
    while not writes and calls < LAP_CALLS and (took := took + fastest) < LAP_US:
        fastest, calls = min(fastest, timed_us(step)), calls + 1
    return fastest


def _step(call: Callable[..., Any], inputs: list[Any]) -> None:
    """One call, in training with its backward. The gradients are dropped.

    A parameter that is returned wants gradients even where none are recorded.
    """
    outputs = [out for out in call(*inputs) if isinstance(out, Tensor) and out.requires_grad]
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if outputs and wanted and torch.is_grad_enabled():
        ones = [torch.ones_like(out) for out in outputs]
        torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
    if compat.cuda_devices(inputs):
        torch.cuda.synchronize()


def _go_on(fastest: Times, rounds: int, most: int, seconds: float) -> bool:
    """Whether another round may tell more of which graph is the fastest."""
    if fastest.steady or most <= ROUNDS:
        return rounds < most and seconds < ENOUGH_SECONDS and _close(fastest, CLEAR)
    return rounds < 4 * most and seconds < DISTURBED_SECONDS and _close(fastest, max(CLEAR, fastest.spread))


def _close(times: Times, factor: float) -> bool:
    """Whether another one than the fastest may turn out to be it."""
    first, *others = sorted(times)
    return not others or others[0] < factor * first
