"""Never slower: before a plan is final, the planned graph races the unplanned one on the inputs at hand.

Times of single GEMMs do not add up to a graph's: Inductor fuses differently around a quantized product, caches are
shared, threads wait. So the graphs are compiled and take turns: the plan's, its finalists' and the unplanned one. The
verdict is kept on disk, by machine and torch version like all times, so that a graph is raced once and not in every
process.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.dispatch import kept_times
from loka_compile.dispatch.plan import Plan
from loka_compile.graph.rerun import own_inputs
from loka_compile.options import Options
from loka_compile.target import TARGETS

ROUNDS, MAX_ROUNDS = 5, 31
ENOUGH_SECONDS = 2.0
"""Rounds go on until they took this long, within these counts."""
MARGIN = 1.01
"""What a finalist has to win by: a race does not tell less."""
QUIET = 0.01
"""Share of the time that the plan made from single times may take more than a finalist of twice its noise."""

Built = tuple[Callable[..., Any], list[Any]]
"""A compiled callable and its artifacts."""


def never_slower(
    plans: Sequence[Plan],
    build: Callable[[Plan], Built],
    inputs: Sequence[Any],
    options: Options,
    device: str,
    written: Collection[int] = (),
) -> tuple[Plan, Built]:
    """The fastest of the plans and its compiled graph; or, where all lose, every site kept and the unplanned graph.

    plans: the one that was made, then its finalists, which have to win by MARGIN. written: places of the inputs that
    the graph writes. Nothing races where a plan was given, where it lowers nothing or is for hardware that is not here,
    where speed is no matter (min_speedup 0), and without real inputs.
    """
    plan = plans[0]
    if not plan.lowered or not _can_race(plan, inputs, options, device):
        return plan, build(plan)
    kept = _kept(plan, "")
    built: dict[int, Built] = {}
    keys = [f"race {_digest(plans, index, inputs)}" for index in range(len(plans))]
    ratios = [kept_times.recall(key) for key in keys]
    if None in ratios:
        built = dict(enumerate([*map(build, plans), build(kept)]))
        with compat.outside_compilation():
            calls = [compiled for compiled, _ in built.values()]
            ratios = _race(calls[-1], calls[:-1], [compat.concrete(value) for value in inputs], written)
        for key, ratio in zip(keys, ratios, strict=True):
            kept_times.remember(key, ratio)
    best = max(range(len(plans)), key=lambda index: ratios[index] / (_margin(plan, plans[index]) if index else 1.0))
    if ratios[best] >= 1:
        return _won(plans[best], ratios, best), built.get(best) or build(plans[best])
    lost = f"the planned graph was slower than the unplanned one: {ratios[0]:.2f}x its speed, measured here"
    kept = _kept(plan, lost)
    return kept, build(kept) if not built else built[len(plans)]


def _margin(plan: Plan, finalist: Plan) -> float:
    """Half the noise is worth some time, as among a site's kernels (judge.py)."""
    before, after = (sum(d.score.noise for d in each.lowered) for each in (plan, finalist))
    return MARGIN + (QUIET * min(1.0, max(0.0, math.log2(after / before))) if before and after else 0.0)


def _won(plan: Plan, ratios: Sequence[float], best: int) -> Plan:
    raced = f"{ratios[best]:.2f}x the unplanned graph's speed"
    if best:
        raced += f", {ratios[best] / ratios[0]:.2f}x that of the plan made from single times"
    return replace(plan, raced=f"{raced}, measured here")


def simplified_or_written(
    plan: Plan,
    simplified: Built,
    build: Callable[[Plan], Built],
    code: str,
    inputs: Sequence[Any],
    options: Options,
    device: str,
    written: Collection[int] = (),
) -> tuple[Plan, Built, float]:
    """The compiled graph, or the one that the exact passes made it of, unplanned, where that is faster.

    build: compiles the latter. code: of both graphs, to know the race by. Returns the plan and the compiled graph of
    the winner, and how many times faster the simplified one was; infinite where nothing races.
    """
    if not _can_race(plan, inputs, options, device):
        return plan, simplified, math.inf
    key = f"race simplified {_digest([plan], 0, inputs)} {hashlib.sha256(code.encode()).hexdigest()[:24]}"
    ratio, as_written, kept = kept_times.recall(key), None, _kept(plan, "the graph as it was written was faster")
    if ratio is None:
        as_written = build(kept)
        with compat.outside_compilation():
            [ratio] = _race(as_written[0], [simplified[0]], [compat.concrete(value) for value in inputs], written)
        kept_times.remember(key, ratio)
    if ratio >= 1:
        said = f"simplified, {ratio:.2f}x the speed of the graph as it was written, measured here"
        return replace(plan, raced="; ".join(filter(None, (plan.raced, said)))), simplified, ratio
    return kept, build(kept) if as_written is None else as_written, ratio


def _can_race(plan: Plan, inputs: Sequence[Any], options: Options, device: str) -> bool:
    target = TARGETS[plan.target]
    here = target.measured and target.device == device
    wanted = options.plan is None and options.min_speedup and options.race
    real = not any(compat.is_fake(value) for value in inputs)
    return bool(here and wanted and real)


def _kept(plan: Plan, reason: str) -> Plan:
    for decision in plan.lowered:
        plan = plan.with_decision(decision.lost(reason))
    return plan


def _digest(plans: Sequence[Plan], index: int, inputs: Sequence[Any]) -> str:
    """The plans' choices, sizes of the inputs, forward only or with its backward; and which of the plans is meant."""
    sizes = [(tuple(map(compat.concrete, x.shape)), x.dtype) if isinstance(x, Tensor) else str(x) for x in inputs]
    choices = [
        [(key, str(d.chosen), d.site.shape, str(d.site.dtype)) for key, d in plan.decisions.items()] for plan in plans
    ]
    raced = plans[0].target, choices, index, sizes, torch.is_grad_enabled()
    return hashlib.sha256(repr(raced).encode()).hexdigest()[:24]


def _race(
    unplanned: Callable[..., Any], planned: Sequence[Callable[..., Any]], inputs: list[Any], written: Collection[int]
) -> list[float]:
    """How many times faster each planned graph is, each at its fastest; they take turns, in orders drawn anew.

    Other work only adds time, and on a machine full of it mostly to whoever waits for threads: medians then told of
    two graphs, one five times as fast, that they were alike (seen).
    """
    calls, order = [unplanned, *planned], random.Random(0)
    fastest, rounds = [math.inf] * len(calls), 0
    with torch.random.fork_rng(_devices(inputs)):
        for call in calls:  # the first call generates code, quantizes weights, and does not count
            _seconds(call, own_inputs(inputs, written))
        start = time.perf_counter()
        while rounds < ROUNDS or (time.perf_counter() - start < ENOUGH_SECONDS and rounds < MAX_ROUNDS):
            for index in order.sample(range(len(calls)), len(calls)):
                fastest[index] = min(fastest[index], _seconds(calls[index], own_inputs(inputs, written)))
            rounds += 1
    return [fastest[0] / seconds for seconds in fastest[1:]]


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
