"""Never slower: before a plan is final, the planned graph races the unplanned one on the inputs at hand.

Times of single GEMMs do not add up to a graph's: Inductor fuses differently around a quantized product, caches are
shared, threads wait. So both graphs are compiled and take turns. The verdict is kept on disk, by machine and torch
version like all times, so that a graph is raced once and not in every process.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from loka_compile import compat
from loka_compile.dispatch import timing
from loka_compile.dispatch.plan import Plan
from loka_compile.options import Options
from loka_compile.target import TARGETS

ROUNDS, MAX_ROUNDS = 5, 31
ENOUGH_SECONDS = 1.0
"""Rounds go on until they took this long, within these counts."""

Built = tuple[Callable[..., Any], list[Any]]
"""A compiled callable and its artifacts."""


def never_slower(
    plan: Plan,
    build: Callable[[Plan], Built],
    inputs: Sequence[Any],
    options: Options,
    device: str,
) -> tuple[Plan, Built]:
    """The plan and its compiled graph; or, where that loses, every site kept and the unplanned graph.

    Nothing races where a plan was given, where it lowers nothing or is for hardware that is not here, where speed is
    no matter (min_speedup 0), and without real inputs.
    """
    target = TARGETS[plan.target]
    here = target.measured and target.device == device
    idle = options.plan is not None or not plan.lowered or not options.min_speedup or not options.race
    if idle or not here or any(compat.is_fake(value) for value in inputs):
        return plan, build(plan)
    planned = build(plan)
    key = f"race {_digest(plan, inputs)}"
    ratio, unplanned = timing.recall(key), None
    kept = _kept(plan, "")
    if ratio is None:
        unplanned = build(kept)
        with compat.outside_compilation():
            ratio = _race(unplanned[0], planned[0], [compat.concrete(value) for value in inputs])
        timing.remember(key, ratio)
    if ratio >= 1:
        return replace(plan, raced=f"{ratio:.2f}x the unplanned graph's speed, measured here"), planned
    kept = _kept(plan, f"the planned graph was slower than the unplanned one: {ratio:.2f}x its speed, measured here")
    return kept, build(kept) if unplanned is None else unplanned


def _kept(plan: Plan, reason: str) -> Plan:
    for decision in plan.lowered:
        plan = plan.with_decision(decision.lost(reason))
    return plan


def _digest(plan: Plan, inputs: Sequence[Any]) -> str:
    """What was raced: the plan's choices, the sizes of the inputs, forward only or with its backward."""
    sizes = [(tuple(map(compat.concrete, x.shape)), x.dtype) if isinstance(x, Tensor) else str(x) for x in inputs]
    choices = [(key, str(d.chosen), d.site.shape, str(d.site.dtype)) for key, d in plan.decisions.items()]
    return hashlib.sha256(repr((plan.target, choices, sizes, torch.is_grad_enabled())).encode()).hexdigest()[:24]


def _race(unplanned: Callable[..., Any], planned: Callable[..., Any], inputs: list[Any]) -> float:
    """How many times faster the planned graph is: the median of the rounds' ratios, orders drawn anew."""
    own = [x.clone() if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) else x for x in inputs]
    order, ratios = random.Random(0), []
    with torch.random.fork_rng(_devices(inputs)):
        for call in (unplanned, planned):  # the first call generates code, quantizes weights, and does not count
            _seconds(call, own)
        start = time.perf_counter()
        while len(ratios) < ROUNDS or (time.perf_counter() - start < ENOUGH_SECONDS and len(ratios) < MAX_ROUNDS):
            seconds = {call: _seconds(call, own) for call in order.sample((unplanned, planned), 2)}
            ratios.append(seconds[unplanned] / seconds[planned])
    return median(ratios)


def _seconds(call: Callable[..., Any], inputs: list[Any]) -> float:
    """Of one call, in training of its backward too; gradients go nowhere."""
    start = time.perf_counter()
    outputs = [out for out in call(*inputs) if isinstance(out, Tensor) and out.requires_grad]
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs], allow_unused=True)
    if _devices(inputs):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _devices(inputs: Sequence[Any]) -> list[int]:
    return sorted({x.get_device() for x in inputs if isinstance(x, Tensor) and x.is_cuda})
