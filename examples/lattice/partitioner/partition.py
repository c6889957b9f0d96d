"""Agglomerative clustering of portfolios under a FLOP budget, with a reason for every merge and for every split left.

No algorithm is published; this one is ours [I]. The most alike pair of groups merges (average linkage over portfolios)
unless the group would cost more than one model may, some of its members' gradients oppose each other, or it is not
alike enough. It stops when all models together cost no more than they should, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import combinations
from math import fsum, isnan
from typing import Any

import numpy as np

from examples.lattice.partitioner.describe import Likeness, Portfolio, Weights, likenesses

Group = tuple[int, ...]
NAMES = tuple(each.name for each in fields(Likeness))
GRADIENT, TOTAL = NAMES.index("gradient"), NAMES.index("total")


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
    state = _State(portfolios, limits, weights)
    merges = []
    while not state.enough and (best := state.best()):
        merges.append(state.merge(*best))
    groups = tuple(state.groups[slot] for slot in state.slots)
    return Partition(groups, tuple(float(state.cost(slot)) for slot in state.slots), (*merges, *state.apart()))


class _State:
    """Groups so far, each in the slot of its first portfolio, and of every two of them what decides whether they merge:
    a merge changes one row of it alone."""

    def __init__(self, portfolios: Sequence[Portfolio], limits: Limits, weights: Weights) -> None:
        count = len(portfolios)
        self.portfolios, self.limits = portfolios, limits
        self.groups: dict[int, Group] = {i: (i,) for i in range(count)}
        self.pairs = likenesses(portfolios, weights)  # of portfolios
        self.sums = self.pairs.copy()  # of groups, over pairs of members; exact, as likenesses are rounded
        self.worst = self.pairs[GRADIENT].copy()  # agreement of any two members
        self.members = np.ones(count)
        self.largest = np.array([each.flops for each in portfolios])
        self.flops = self.largest.copy()  # all members'
        self.score = np.full((count, count), -np.inf)  # of those that may merge, the first slot before the second
        for slot in range(count):
            self._judge(slot)

    @property
    def slots(self) -> list[int]:
        return sorted(self.groups)

    @property
    def total(self) -> float:
        return float(sum(self.cost(slot) for slot in self.slots))

    @property
    def enough(self) -> bool:
        """Whether all models together cost no more than they should."""
        return bool(self.limits.total) and self.total <= self.limits.total

    def cost(self, a: int, b: int | np.ndarray | None = None) -> Any:
        """FLOPs of the model of a group, or of two that are one."""
        largest, flops = self.largest[a], self.flops[a]
        if b is not None:
            largest, flops = np.maximum(largest, self.largest[b]), flops + self.flops[b]
        return largest + self.limits.extra * (flops - largest)

    def best(self) -> tuple[int, int] | None:
        """The most alike groups that may merge, of several the first."""
        a, b = divmod(int(self.score.argmax()), len(self.score))
        return (a, b) if self.score[a, b] > -np.inf else None

    def merge(self, a: int, b: int) -> Step:
        """Makes one group of two, in the slot of the first."""
        may = int((self.score > -np.inf).sum())
        others = len(self.groups) * (len(self.groups) - 1) // 2 - may
        before = self.cost(a) + self.cost(b)
        step = partial(Step, self._names(a), self._names(b), True, self.likeness(a, b))
        self.groups[a] = tuple(sorted(self.groups[a] + self.groups.pop(b)))
        self.sums[:, a] += self.sums[:, b]
        self.sums[:, :, a] += self.sums[:, :, b]
        self.worst[a] = np.minimum(self.worst[a], self.worst[b])
        self.worst[:, a] = self.worst[a]
        self.members[a] += self.members[b]
        self.largest[a], self.flops[a] = max(self.largest[a], self.largest[b]), self.flops[a] + self.flops[b]
        self.score[b] = self.score[:, b] = -np.inf
        self._judge(a)
        saved = before - self.cost(a)
        return step(f"the most alike of {may} pairs that may merge ({others} may not), saves {saved:.3g} FLOPs")

    def likeness(self, a: int, b: int) -> Likeness:
        """Average linkage: the mean over pairs of members."""
        return Likeness(*(self.sums[:, a, b] / (self.members[a] * self.members[b])).tolist())

    def apart(self) -> list[Step]:
        """The groups that stayed apart, the most alike first, and why."""
        pairs = list(combinations(self.slots, 2))
        likenesses = [self.likeness(a, b) for a, b in pairs]
        total, names = self.total, {slot: self._names(slot) for slot in self.slots}
        order = sorted(range(len(pairs)), key=lambda i: -likenesses[i].total)
        found = ((*pairs[i], likenesses[i]) for i in order)
        return [Step(names[a], names[b], False, alike, self._against(a, b, alike, total)) for a, b, alike in found]

    def _judge(self, slot: int) -> None:
        """Which groups this one may merge with, and how alike they are."""
        others = np.array([other for other in self.slots if other != slot], dtype=int)
        alike = self.sums[TOTAL, slot, others] / (self.members[slot] * self.members[others])
        may = (self.worst[slot, others] >= self.limits.conflict) & (alike >= self.limits.least)
        may &= self.cost(slot, others) <= self.limits.group
        self.score[np.minimum(slot, others), np.maximum(slot, others)] = np.where(may, alike, -np.inf)

    def _against(self, a: int, b: int, alike: Likeness, total: float) -> str:
        """Why two groups must not merge."""
        limits = self.limits
        if (worst := self.worst[a, b]) < limits.conflict:
            between = self.pairs[GRADIENT][np.ix_(self.groups[a], self.groups[b])]
            i, j = divmod(int(between.argmin()), between.shape[1])
            names = " and ".join((self._names(a)[i], self._names(b)[j]))
            opposed = f"{worst:+.2f} < {limits.conflict:+.2f}"
            return f"the gradients of {names} oppose each other, {opposed}: split or untie them"
        if alike.total < limits.least:
            return f"not alike enough, {alike.total:.2f} < {limits.least:.2f}"
        if (together := self.cost(a, b)) > limits.group:
            return f"one model would cost {together:.3g} FLOPs of {limits.group:.3g}"
        return f"all models together cost {total:.3g} FLOPs of {limits.total:.3g}: nothing need merge"

    def _names(self, slot: int) -> tuple[str, ...]:
        return tuple(self.portfolios[i].name for i in self.groups[slot])


def cost(portfolios: Sequence[Portfolio], group: Group, extra: float) -> float:
    """FLOPs of the model of a group: its largest member's, and a share of every other's."""
    each = [portfolios[i].flops for i in group]
    return max(each) + extra * (fsum(each) - max(each))


def capacity(portfolios: Sequence[Portfolio], groups: Sequence[Group], flops: float) -> tuple[float, ...]:
    """`flops` dealt to the groups by their shares of the revenue, as the paper has it; evenly if there is none."""
    revenue = [sum(portfolios[i].revenue for i in group) for group in groups]
    total = sum(revenue)
    return tuple(flops * (each / total if total else 1 / len(groups)) for each in revenue)
