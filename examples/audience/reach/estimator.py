"""The aggregator: one question to all counters, sums added up, an estimate with its interval."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from examples.audience.reach import answer, clusters
from examples.audience.reach.answer import Answer, Groups, Reach
from examples.audience.reach.calibrate import Cells, calibrated
from examples.audience.reach.counters import Counters
from examples.audience.reach.formula import NOBODY, Formula, formula, within
from examples.audience.reach.measures import Spread
from examples.audience.reach.query import And, Everybody, In, Not, Query, checked
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import Ask, Chance

Of = Literal["count", "users", "total", "mean"]
"""Rows that match; users who have one that does; the sum and the mean of a measure over them."""
MAX_GROUPS = 512
"""Values of a feature that one question may be grouped by."""


class Unavailable(Exception):
    """No counter answered in time."""


@dataclass(frozen=True)
class Question:
    """of: what is asked about those who match `query`; measure: whose total or mean, else None. Of users, those who
    also have a row that matches each of `also`, and none that matches any of `never`."""

    query: Query
    of: Of = "count"
    measure: str | Chance | None = None
    also: tuple[Query, ...] = ()
    never: tuple[Query, ...] = ()

    def ask(self) -> Ask:
        measure = self.measure if self.of in ("total", "mean") else None
        return Ask(self.query, measure, self.of == "users", also=self.also, never=self.never)


@dataclass(frozen=True)
class Overlap:
    """Of two audiences: who is in both, in the first alone, in the second alone, and both over either."""

    both: Reach
    first: Reach
    second: Reach
    jaccard: float


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the counters are asked for one question, and how their sums become its answer."""

    asks: tuple[Ask, ...]
    made: Callable[[Sequence[Any], Groups, float], Reach]


class Estimator:
    """Answers questions from the counters' sample; safe to use from several threads."""

    def __init__(self, counters: Counters, seconds: float = 1.0) -> None:
        """seconds: how long counters may take; what has not answered by then is left out, and intervals are wider."""
        self.counters, self.seconds = counters, seconds
        self.manifest = counters.manifest
        self.schema = self.manifest.schema
        self._known: dict[str, Groups] = {}
        self._joined: dict[frozenset[str], Groups] = {}
        self._lock = threading.Lock()

    def reach(self, question: Question) -> Reach:
        """Raises AudienceError for a question that cannot be asked, Unavailable if no counter answers in time."""
        return self.batch([question])[0]

    def batch(self, questions: Sequence[Question]) -> list[Reach]:
        """Answers to several questions by the same counters."""
        return self._answers([self._plan(self._checked(each)) for each in questions])

    def alone(self, question: Question) -> Reach:
        """The answer of the sample, without what is known of the whole population."""
        return self._answers([self._by_sample(self._checked(question))])[0]

    def group_by(self, question: Question, feature: str) -> dict[object, Reach]:
        """The question for every value of a feature."""
        values = self.schema.feature(feature).values
        if len(values) > MAX_GROUPS:
            raise AudienceError(f"{feature!r} has {len(values)} values; a question is grouped by at most {MAX_GROUPS}")
        asked = [replace(question, query=And((question.query, In(feature, (value,))))) for value in values]
        return dict(zip(values, self.batch(asked), strict=True))

    def overlap(self, first: Query, second: Query, of: Of = "count") -> Overlap:
        """How far two audiences are the same. Of users: who has a row in each, whether or not it is the same row.

        Both and the first alone are together the first, as it is answered by itself; so with the second.
        """
        if of == "users":
            asked = [Question(first, of, also=(second,)), Question(first, of, never=(second,))]
            asked.append(Question(second, of, never=(first,)))
        else:
            parts = And((first, second)), And((first, Not(second))), And((second, Not(first)))
            asked = [Question(part, of) for part in parts]
        both, alone, other, *whole = self.batch([*asked, Question(first, of), Question(second, of)])
        least = 0.0 if self.manifest.users else whole[0].value + whole[1].value - self.manifest.population
        value = min(max(both.value, least), *(each.value for each in whole))
        both, alone, other = _at(both, value), _at(alone, whole[0].value - value), _at(other, whole[1].value - value)
        either = both.value + alone.value + other.value
        return Overlap(both, alone, other, both.value / either if either else 0.0)

    def formula(self, question: Question) -> Formula | None:
        """A count of few criteria is better for what is known of the whole population; others are the sample's."""
        if question.of != "count" or not self._partial:
            return None
        return formula(checked(question.query, self.schema), self.schema)

    @property
    def _partial(self) -> bool:
        """Whether it is a sample of some of the rows, beside which there is a model of all."""
        return not self.manifest.users and self.manifest.rows < self.manifest.population

    def _plan(self, question: Question) -> _Asked:
        if question.of != "count":
            return self._by_sample(question)
        if not self._partial:
            everybody = within(question.query, self.schema)[0] == Everybody()
            return self._counted(Everybody()) if everybody else self._by_sample(question)
        if (known := formula(question.query, self.schema)) is not None:
            return self._by_cells(question.query, known)
        surely, perhaps = within(question.query, self.schema)
        inner, outer = self._counted(surely), self._counted(perhaps)
        first, second = len(inner.asks), len(inner.asks) + len(outer.asks)
        open_ = And((perhaps, Not(surely)))

        def made(parts: Sequence[Any], groups: Groups, answered: float) -> Reach:
            least = inner.made(parts[:first], groups, answered)
            most = outer.made(parts[first:second], groups, answered)
            return _between(least, most, answer.share(parts[second], groups, answered), parts[second].rows)

        if surely == perhaps:
            return outer
        return _Asked((*inner.asks, *outer.asks, Ask(question.query, among=open_)), made)

    def _counted(self, query: Query) -> _Asked:
        """A query that is a formula, everybody or nobody."""
        if query in (Everybody(), NOBODY):
            there = query == Everybody()
            value = float(self.manifest.population * there)

            def known(parts: Sequence[Any], groups: Groups, answered: float) -> Reach:
                return Reach(value, value, value, int(groups.rows.sum() * there), answered)

            return _Asked((), known)
        found = formula(query, self.schema)
        assert found is not None  # `within` gives nothing else
        return self._by_cells(query, found)

    def _by_cells(self, query: Query, known: Formula) -> _Asked:
        def made(parts: Sequence[Any], groups: Groups, answered: float) -> Reach:
            return calibrated(known, parts[0], self.counters.model, answered)

        return _Asked((Ask(query, atoms=known.atoms),), made)

    def _by_sample(self, question: Question) -> _Asked:
        def made(parts: Sequence[Any], groups: Groups, answered: float) -> Reach:
            return _estimate(question, parts[0], groups, self._spread(question.measure), answered)

        return _Asked((question.ask(),), made)

    def _spread(self, measure: str | Chance | None) -> Spread:
        if isinstance(measure, Chance):
            table = (0.0, *measure.table)
            return Spread(min(table), max(table), 1, (math.inf,) * 4)  # its ends are all that is known
        return self.manifest.measures[measure] if measure is not None else Spread()

    def _answers(self, plans: Sequence[_Asked]) -> list[Reach]:
        asks = [ask for plan in plans for ask in plan.asks]
        answers = self.counters.ask(asks or [Ask(NOBODY)], self.seconds)
        groups, answered, names = self._groups(answers)
        found = [answers[name] for name in names]
        out, at = [], 0
        for plan in plans:
            parts = [_summed([each[i] for each in found]) for i in range(at, at + len(plan.asks))]
            out.append(plan.made(parts, groups, answered))
            at += len(plan.asks)
        return out

    def _checked(self, question: Question) -> Question:
        if question.of not in get_args(Of):
            raise AudienceError(f"a question is of {', '.join(get_args(Of))}; got {question.of!r}")
        if (question.measure is None) != (question.of in ("count", "users")):
            raise AudienceError(f"a measure goes with total and mean, not with {question.of!r}")
        if question.of == "users" and not self.manifest.users:
            raise AudienceError("the sample is of rows, users cannot be counted in it; build one with a user column")
        if question.of != "users" and (question.also or question.never):
            raise AudienceError(f"`also` and `never` go with users, not with {question.of!r}")
        if isinstance(question.measure, str):
            self.schema.measure(question.measure)
        also, never = (tuple(checked(q, self.schema) for q in each) for each in (question.also, question.never))
        return replace(question, query=checked(question.query, self.schema), also=also, never=never)

    def _groups(self, answers: Mapping[str, Any]) -> tuple[Groups, float, list[str]]:
        """Those of the shards that answered, what share of the sample these are, and their names, in order, so that
        sums do not depend on who answers first. What a shard holds does not change, so it is asked once; one that
        does not say is as one that does not answer."""
        with self._lock:
            if not answers.keys() <= self._known.keys():
                self._known.update(self.counters.groups())
            names = sorted(answers.keys() & self._known.keys())
            if not names:
                lost = "".join(f"; {why}" for why in list(self.counters.lost.values())[:1])
                raise Unavailable(f"no counter answered within {self.seconds:g} s; ask again{lost}")
            if frozenset(names) not in self._joined:
                joined = _together([self._known[name] for name in names], self.manifest.population)
                self._joined[frozenset(names)] = joined
            groups = self._joined[frozenset(names)]
        shards = self.manifest.shards
        if len(names) == len(shards):
            return groups, 1.0, names
        if self.manifest.users:
            return groups, np.count_nonzero(groups.rows) / self.manifest.groups, names
        weights = sum(each.weight for each in shards.values())
        return groups, sum(shards[name].weight for name in names) / weights, names


def _summed(parts: Sequence[Any]) -> Answer | Cells:
    return answer.added(parts) if isinstance(parts[0], Answer) else sum(parts[1:], start=parts[0])


def _together(parts: Sequence[Groups], population: float) -> Groups:
    return Groups(
        rows=np.sum([each.rows for each in parts], axis=0),
        sizes=np.max([each.sizes for each in parts], axis=0),
        squares=np.sum([each.squares for each in parts], axis=0),
        heaviest=max(each.heaviest for each in parts),
        population=float(population),
        users=parts[0].users,
    )


def _estimate(question: Question, summed: Answer, groups: Groups, spread: Spread, answered: float) -> Reach:
    match question.of:
        case "total":
            return (clusters if groups.users else answer).total(summed, groups, spread, answered)
        case "mean":
            return (clusters if groups.users else answer).mean(summed, groups, spread, answered)
    if groups.users:
        return clusters.count(summed, groups, question.of == "users", answered)
    return answer.count(summed, groups, answered)


def _between(least: Reach, most: Reach, share: Reach, drawn: int) -> Reach:
    """Those who match surely, and the share of those who may, of whom `drawn` rows were looked at."""
    p, between = share.value, max(0.0, most.value - least.value)
    value = least.value + p * between
    below = (1 - p) * (least.value - least.low), p * (most.value - most.low), between * (p - share.low)
    above = (1 - p) * (least.high - least.value), p * (most.high - most.value), between * (share.high - p)
    low = max(least.low + share.rows, value - math.hypot(*below))  # what was seen is there
    high = min(most.high - (drawn - share.rows), value + math.hypot(*above))
    return answer.whole(Reach(value, low, high, least.rows + share.rows, share.answered))


def _at(found: Reach, value: float) -> Reach:
    """The value that others leave it, inside its interval."""
    value = max(0.0, value)
    return replace(found, value=value, low=min(found.low, value), high=max(found.high, value))
