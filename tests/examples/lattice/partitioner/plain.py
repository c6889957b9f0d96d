"""The partition as it reads: every pair of groups looked at again before each merge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from examples.lattice.partitioner.describe import Likeness, Portfolio, Weights, likeness
from examples.lattice.partitioner.partition import Group, Limits, Partition, Step, cost


def partition(portfolios: Sequence[Portfolio], limits: Limits, weights: Weights) -> Partition:
    """Groups of portfolios that share a model each."""
    if not portfolios:
        raise ValueError("there is no portfolio to put into groups")
    pairs = {
        (i, j): likeness(portfolios[i], portfolios[j], weights) for i, j in combinations(range(len(portfolios)), 2)
    }
    groups: list[Group] = [(i,) for i in range(len(portfolios))]
    steps: list[Step] = []
    while True:
        total = sum(cost(portfolios, group, limits.extra) for group in groups)
        candidates = sorted(
            ((between(pairs, a, b), a, b) for a, b in combinations(groups, 2)), key=lambda of: -of[0].total
        )
        reasons = [(against(portfolios, pairs, a, b, alike, limits, total), alike, a, b) for alike, a, b in candidates]
        allowed = [(alike, a, b) for reason, alike, a, b in reasons if not reason]
        if not allowed:
            break
        alike, a, b = allowed[0]
        groups = sorted([group for group in groups if group not in (a, b)] + [tuple(sorted(a + b))])
        saved = sum(cost(portfolios, side, limits.extra) for side in (a, b)) - cost(portfolios, a + b, limits.extra)
        better = len(candidates) - len(allowed)
        reason = f"the most alike of {len(allowed)} pairs that may merge ({better} may not), saves {saved:.3g} FLOPs"
        steps.append(Step(_names(portfolios, a), _names(portfolios, b), True, alike, reason))
    apart = [Step(_names(portfolios, a), _names(portfolios, b), False, alike, why) for why, alike, a, b in reasons]
    flops = tuple(cost(portfolios, group, limits.extra) for group in groups)
    return Partition(tuple(groups), flops, (*steps, *apart))


def between(pairs: dict[tuple[int, int], Likeness], a: Group, b: Group) -> Likeness:
    """Average linkage: the mean over pairs of members."""
    found = [pairs[min(i, j), max(i, j)] for i in a for j in b]
    names = ("overlap", "timing", "gradient", "total", "known")
    return Likeness(*(fmean(getattr(one, name) for one in found) for name in names))


def against(
    portfolios: Sequence[Portfolio],
    pairs: dict[tuple[int, int], Likeness],
    a: Group,
    b: Group,
    alike: Likeness,
    limits: Limits,
    total: float,
) -> str:
    """Why two groups must not merge; empty if they may."""
    i, j = min(((i, j) for i in a for j in b), key=lambda of: pairs[min(of), max(of)].gradient)
    worst = pairs[min(i, j), max(i, j)].gradient
    if worst < limits.conflict:
        names = f"{portfolios[i].name} and {portfolios[j].name}"
        return f"the gradients of {names} oppose each other, {worst:+.2f} < {limits.conflict:+.2f}: split or untie them"
    if alike.total < limits.least:
        return f"not alike enough, {alike.total:.2f} < {limits.least:.2f}"
    together = cost(portfolios, a + b, limits.extra)
    if together > limits.group:
        return f"one model would cost {together:.3g} FLOPs of {limits.group:.3g}"
    if limits.total and total <= limits.total:
        return f"all models together cost {total:.3g} FLOPs of {limits.total:.3g}: nothing need merge"
    return ""


def _names(portfolios: Sequence[Portfolio], group: Group) -> tuple[str, ...]:
    return tuple(portfolios[i].name for i in group)
