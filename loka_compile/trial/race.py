"""Never slower: before a plan is final, the planned graph races the unplanned one on the inputs at hand.

Times of single GEMMs do not add up to a graph's: Inductor fuses differently around a quantized product, caches are
shared, threads wait. So the graphs are compiled and take turns: the plan's, its finalists' and the unplanned one. The
verdict is kept on disk, by machine and torch version like all times, so that a graph is raced once and not in every
process.

A graph that takes longer in its products and attention alone than a planned one takes in all has lost, and is not
even compiled.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loka_compile import compat
from loka_compile.dispatch import kept_times, progress
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.target import TARGETS
from loka_compile.trial.finalists import saves_us, time_us
from loka_compile.trial.laps import CLEAR, ROUNDS, Times, fastest_us

WORTH = 1.05
"""What low precision has to win by: its error is not worth less, and a race tells no less of calls of 100 us."""
MARGIN = 1.01
"""What a finalist has to win by: a race does not tell less."""
QUIET = 0.01
"""A finalist with twice the noise of the plan made from single times has to win by this share of the time more."""
WATCHED_US, WATCHED_WEIGHT_US = 12.0, 0.8
"""What a call takes online, under a plan that lowers something, to know whose weights these are and when to measure
again; and on top of it for each weight. (Measured on an AMD Zen 5, around calls of 0.2 to 1.1 ms: 16 to 33 us with 18
weights, 22 to 76 with 25, 29 to 134 with 69. The less where nothing else has been in the cache since the last call.)"""
LITTLE, FEW = 0.02, 4.0
"""LITTLE: a plan that saves no more than this share of the unplanned graph's time, by single times, has nothing to win.
FEW: the unplanned graph is timed first if it takes at least so many times what the plan saves."""

Built = tuple[Callable[..., Any], list[Any]]
"""A compiled callable and its artifacts."""
Floor = Callable[[], float]
"""Microseconds that a graph takes at least; asked for only where it matters."""


def unknown() -> float:
    return 0.0


@dataclass(frozen=True)
class Raced:
    """The winner and its compiled graph. us: what a call takes, where that was measured now. eager: why the graph as it
    runs in eager did not race, where it might have."""

    plan: Plan
    built: Built
    us: float | None = None
    eager: str = ""


def never_slower(
    plans: Sequence[Plan],
    build: Callable[[Plan], Built],
    inputs: Sequence[Any],
    options: Options,
    device: str,
    written: Collection[int] = (),
    floor: Floor = unknown,
    watched: bool = False,
) -> Raced:
    """The fastest of the plans and its compiled graph; or, where all lose, every site kept and the unplanned graph.

    plans: the one that was made, then its finalists, which have to win by MARGIN. written: places of the inputs that
    the graph writes. floor: of the unplanned graph. watched: online, where a call of what is lowered takes watched_us
    more. Nothing races where a plan was given, where it lowers nothing or is for hardware that is not here, where speed
    is no matter (min_speedup 0), and without real inputs.
    """
    plan = plans[0]
    if not plan.lowered or not can_race(plan, inputs, options, device):
        return Raced(plan, build(plan))
    more_us = watched_us(inputs) if watched else 0.0
    digests = [digest_of(plans, index, inputs) + f" watched {more_us:.0f}" * watched for index in range(len(plans))]
    known = [kept_times.recall(f"race {digest}") for digest in digests]
    ran = _run(plans, build, inputs, device, written, floor, more_us) if None in known else None
    ratios: Sequence[float] = [ratio for ratio in known if ratio is not None]
    if ran is not None:
        for digest, ratio in zip(digests, ran.ratios, strict=True) if ran.settled else ():
            kept_times.remember(f"race {digest}", ratio, ran.us.noisy)
            kept_times.remember(f"race {digest} against a floor", float(ran.against_floor))
        if ran.saves is not None and ran.settled:
            kept_times.remember(f"race {digests[0]} saves", max(ran.saves, 0.0))  # less than nothing is not kept
        ratios = ran.ratios
    where = where_taken(ran is not None and ran.us.noisy)
    best = max(range(len(plans)), key=lambda index: ratios[index] / (_margin(plan, plans[index]) if index else 1.0))
    if ratios[best] >= WORTH:
        floored = kept_times.recall(f"race {digests[best]} against a floor") if ran is None else ran.against_floor
        won = _won(plans[best], ratios, best, bool(floored), where)
        return Raced(won, ran.built[best], ran.us[best]) if ran is not None else Raced(won, build(won))
    lost = f"the planned graph was slower than the unplanned one: {ratios[0]:.2f}x its speed, {where}"
    if ratios[best] >= 1:
        lost = f"the planned graph was hardly faster: {ratios[best]:.2f}x the unplanned one's speed, {where}; "
        lost += f"low precision has to win {WORTH}x"
    saves = kept_times.recall(f"race {digests[0]} saves") if ran is None else ran.saves
    if saves is not None:
        lost = f"all that is lowered saves {max(saves, 0.0):.1%} of the graph's time by single times, {where}: "
        lost += "too little for a race to tell"
    kept = all_kept(plan, lost)
    return Raced(kept, ran.built[-1], ran.us[-1]) if ran is not None else Raced(kept, build(kept))


def watched_us(inputs: Sequence[Any]) -> float:
    """Microseconds that watching adds to a call with these inputs."""
    return WATCHED_US + WATCHED_WEIGHT_US * sum(isinstance(each, nn.Parameter) for each in inputs)


@dataclass(frozen=True)
class _Ran:
    """The graphs that were compiled, the unplanned one the last if it was, and what each took.

    against_floor: ratios are to what the unplanned graph takes at least. saves: which share of the unplanned graph's
    time, where that is too little for planned graphs to be compiled; ratios are 0 then.
    """

    built: Sequence[Built]
    us: Times
    ratios: Sequence[float]
    against_floor: bool
    saves: float | None = None

    @property
    def settled(self) -> bool:
        """Whether the next process need not race them again."""
        if self.saves is not None:
            return self.us.steady or self.saves * self.us.spread <= LITTLE
        return all(self.us.settles(ratio / WORTH) for ratio in self.ratios)


def _run(
    plans: Sequence[Plan],
    build: Callable[[Plan], Built],
    inputs: Sequence[Any],
    device: str,
    written: Collection[int],
    floor: Floor,
    more_us: float,
) -> _Ran:
    """The unplanned graph is compiled only if the plans do not beat its floor; and they only if there is something to
    win. more_us: of a call of a planned graph, beside the graph."""
    kept, values = all_kept(plans[0], ""), [compat.concrete(value) for value in inputs]
    saved, unplanned = max(map(saves_us, plans)), []
    if saved * FEW <= floor():
        unplanned = [_told(build, kept)]
        with compat.outside_compilation():
            us = fastest_us([unplanned[0][0]], values, written, ROUNDS)
        if saved <= LITTLE * us[0]:
            return _Ran(unplanned, us, [0.0] * len(plans), False, saved / us[0])
    hopeful = not unplanned and time_us(plans[0]) * CLEAR <= floor()
    with compat.compiling_side_by_side() if device == "cpu" else contextlib.nullcontext():
        built = [_told(build, each) for each in (plans if hopeful or unplanned else [*plans, kept])] + unplanned
    if hopeful:
        with compat.outside_compilation():
            us = fastest_us([call for call, _ in built], values, written, ROUNDS)
            if (min(us) + more_us) * CLEAR <= floor():
                us = us if len(us) == 1 else fastest_us([call for call, _ in built], values, written)
                return _Ran(built, us, [floor() / (each + more_us) for each in us], True)
        built.append(_told(build, kept))
    with compat.outside_compilation():
        us = fastest_us([call for call, _ in built], values, written)
    return _Ran(built, us, [us[-1] / (each + more_us) for each in us[:-1]], False)


def _told(build: Callable[[Plan], Built], plan: Plan) -> Built:
    progress.say(f"compiling the graph with {len(plan.lowered)} of {len(plan.decisions)} GEMMs lowered, to race it")
    return build(plan)


def _margin(plan: Plan, finalist: Plan) -> float:
    """Half the noise is worth some time, as among a site's kernels (dispatch/together.py)."""
    before, after = (sum(d.score.noise for d in each.lowered) for each in (plan, finalist))
    return MARGIN + (QUIET * min(1.0, max(0.0, math.log2(after / before))) if before and after else 0.0)


def where_taken(busy: bool) -> str:
    return "measured here while the machine was busy with other work" if busy else "measured here"


def _won(plan: Plan, ratios: Sequence[float], best: int, at_least: bool, where: str) -> Plan:
    raced = f"{ratios[best]:.2f}x the unplanned graph's speed"
    if at_least:
        raced = f"at least {raced}, whose library calls alone take as long"
    if best:
        raced += f", {ratios[best] / ratios[0]:.2f}x that of the plan made from single times"
    return replace(plan, raced=f"{raced}, {where}")


def simplified_or_written(
    raced: Raced,
    build: Callable[[Plan], Built],
    code: str,
    inputs: Sequence[Any],
    options: Options,
    device: str,
    written: Collection[int] = (),
    floor: Floor = unknown,
) -> tuple[Raced, float]:
    """The compiled graph, or the one that the exact passes made it of, unplanned, where that is faster.

    build: compiles the latter. code: of both graphs, to know the race by. floor: of the latter. Returns the winner, and
    how many times faster the simplified one was; infinite where nothing races.
    """
    plan, simplified = raced.plan, raced.built[0]
    if not can_race(plan, inputs, options, device):
        return raced, math.inf
    key = f"race simplified {digest_of([plan], 0, inputs)} {hashlib.sha256(code.encode()).hexdigest()[:24]}"
    ratio, as_written, kept = kept_times.recall(key), None, all_kept(plan, "the graph as it was written was faster")
    busy = False
    if ratio is None:
        values = [compat.concrete(value) for value in inputs]
        with compat.outside_compilation():
            us = raced.us or fastest_us([simplified], values, written, ROUNDS)[0]
        if us * CLEAR <= floor():
            ratio, settled = floor() / us, True
            kept_times.remember(f"{key} against a floor", 1.0)
        else:
            as_written = _told(build, kept)
            with compat.outside_compilation():
                times = fastest_us([simplified, as_written[0]], values, written)
            ratio, busy = times[1] / times[0], times.noisy
            settled = times.settles(ratio)
        if settled:
            kept_times.remember(key, ratio, busy)
    if ratio >= 1:
        said = f"{ratio:.2f}x the speed of the graph as it was written"
        if kept_times.recall(f"{key} against a floor"):
            said = f"at least {said}, whose library calls alone take as long"
        said = f"simplified, {said}, {where_taken(busy)}"
        plan = replace(plan, raced="; ".join(filter(None, (plan.raced, said))))
        return replace(raced, plan=plan), ratio
    return Raced(kept, build(kept) if as_written is None else as_written), ratio


def can_race(plan: Plan, inputs: Sequence[Any], options: Options, device: str) -> bool:
    target = TARGETS[plan.target]
    here = target.measured and target.device == device
    wanted = options.plan is None and options.min_speedup and options.race
    real = not any(compat.is_fake(value) for value in inputs)
    return bool(here and wanted and real)


def all_kept(plan: Plan, reason: str) -> Plan:
    for decision in plan.lowered:
        plan = plan.with_decision(decision.lost(reason))
    return plan


def digest_of(plans: Sequence[Plan], index: int, inputs: Sequence[Any]) -> str:
    """The plans' choices, sizes of the inputs, forward only or with its backward; and which of the plans is meant."""
    sizes = [(tuple(map(compat.concrete, x.shape)), x.dtype) if isinstance(x, Tensor) else str(x) for x in inputs]
    choices = [
        [(key, str(d.chosen), d.site.shape, str(d.site.dtype)) for key, d in plan.decisions.items()] for plan in plans
    ]
    raced = plans[0].target, choices, index, sizes, torch.is_grad_enabled()
    return hashlib.sha256(repr(raced).encode()).hexdigest()[:24]
