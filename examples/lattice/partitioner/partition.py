"""Agglomerative clustering of portfolios under a FLOP budget, with a reason for every merge and for every split left.

No algorithm is published; this one is ours [I]. The most alike pair of groups merges (average linkage over portfolios)
unless the group would cost more than one model may, some of its members' gradients oppose each other, or it is not
alike enough. It stops when all models together cost no more than they should, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan
from statistics import fmean

from examples.lattice.partitioner.describe import Likeness, Portfolio, Weights, likeness

Group = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """group: FLOPs a sample that one model may cost; total: where merging stops (0: as far as the others let it);
    least: likeness of groups that may merge, by default that of two which are alike in one criterion of three and in
    the others neither alike nor opposed; conflict: cosine of gradients under which two portfolios never share;
    extra: what a further portfolio adds to a group's cost, as a share of its own model's."""

    group: float = float("inf")
    total: float = 0.0
    least: float = 0.3
    conflict: float = -0.2
    extra: float = 0.25

    def __post_init__(self) -> None:
        if not (self.group > 0 and self.total >= 0 and 0 <= self.extra < float("inf")):
            raise ValueError(f"group is more than 0, total and extra are numbers of at least 0, got {self}")
        if isnan(self.least) or isnan(self.conflict):
            raise ValueError(f"least and conflict are numbers, got {self}")


@dataclass(frozen=True)
class Step:
    """merged: whether left and right became one; reason: why, or why they stay apart."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    merged: bool
    likeness: Likeness
    reason: str

    def __str__(self) -> str:
        sides = f"{' + '.join(self.left)} {'and' if self.merged else '|'} {' + '.join(self.right)}"
        of = self.likeness
        parts = f"IDs {of.overlap:.2f}, timing {of.timing:.2f}, {compared(of)}"
        return f"{sides}: {'merged' if self.merged else 'apart'}, alike {of.total:.2f} ({parts}); {self.reason}"


def compared(of: Likeness) -> str:
    """What is said of gradients."""
    if not of.known:
        return "no gradient to compare: its own parts do not agree"
    some = "" if of.known == 1 else f" of {of.known:.0%} of pairs, others have none to compare"
    return f"gradients {of.gradient:+.2f}{some}"


@dataclass(frozen=True)
class Partition:
    """groups of portfolios' indices; flops of each group's model; steps: the merges in order, then the pairs of groups
    that stayed apart."""

    groups: tuple[Group, ...]
    flops: tuple[float, ...]
    steps: tuple[Step, ...]

    def explain(self) -> str:
        return "\n".join(map(str, self.steps))


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


def cost(portfolios: Sequence[Portfolio], group: Group, extra: float) -> float:
    """FLOPs of the model of a group: its largest member's, and a share of every other's."""
    each = [portfolios[i].flops for i in group]
    return max(each) + extra * (sum(each) - max(each))


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


def capacity(portfolios: Sequence[Portfolio], groups: Sequence[Group], flops: float) -> tuple[float, ...]:
    """`flops` dealt to the groups by their shares of the revenue, as the paper has it; evenly if there is none."""
    revenue = [sum(portfolios[i].revenue for i in group) for group in groups]
    total = sum(revenue)
    return tuple(flops * (each / total if total else 1 / len(groups)) for each in revenue)


def _names(portfolios: Sequence[Portfolio], group: Group) -> tuple[str, ...]:
    return tuple(portfolios[i].name for i in group)
