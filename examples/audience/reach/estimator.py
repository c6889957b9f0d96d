"""The aggregator: one question to all counters, sums added up, an estimate with its interval."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from examples.audience.reach import answer
from examples.audience.reach.answer import Answer, Groups, Reach
from examples.audience.reach.calibrate import calibrated
from examples.audience.reach.counters import Counters
from examples.audience.reach.formula import Formula, formula
from examples.audience.reach.query import And, In, Not, Query, checked
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
    """of: what is asked about those who match `query`; measure: whose total or mean, else None."""

    query: Query
    of: Of = "count"
    measure: str | Chance | None = None

    def ask(self) -> Ask:
        return Ask(self.query, self.measure if self.of in ("total", "mean") else None, self.of == "users")


@dataclass(frozen=True)
class Overlap:
    """Of two audiences: who is in both, in the first alone, in the second alone, and both over either."""

    both: Reach
    first: Reach
    second: Reach
    jaccard: float


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
        questions = [self._checked(each) for each in questions]
        formulas = [self.formula(each) for each in questions]
        asks = [
            each.ask() if known is None else Ask(each.query, atoms=known.atoms)
            for each, known in zip(questions, formulas, strict=True)
        ]
        answers = self.counters.ask(asks, self.seconds)
        found = dict(sorted(answers.items()))  # so that sums do not depend on who answers first
        if not found:
            raise Unavailable(f"no counter answered within {self.seconds:g} s; ask again")
        groups, answered = self._groups(frozenset(found)), self._answered(found)
        out = []
        for number, (question, known) in enumerate(zip(questions, formulas, strict=True)):
            parts = [each[number] for each in found.values()]
            if known is None:
                out.append(_estimate(question, answer.added(parts), self._of(groups, question), answered))
            else:
                out.append(calibrated(known, sum(parts[1:], start=parts[0]), self.counters.model, answered))
        return out

    def alone(self, question: Question) -> Reach:
        """The answer of the sample, without what is known of the whole population."""
        question = self._checked(question)
        found = dict(sorted(self.counters.ask([question.ask()], self.seconds).items()))
        if not found:
            raise Unavailable(f"no counter answered within {self.seconds:g} s; ask again")
        groups, summed = self._groups(frozenset(found)), answer.added([each[0] for each in found.values()])
        return _estimate(question, summed, self._of(groups, question), self._answered(found))

    def group_by(self, question: Question, feature: str) -> dict[object, Reach]:
        """The question for every value of a feature."""
        values = self.schema.feature(feature).values
        if len(values) > MAX_GROUPS:
            raise AudienceError(f"{feature!r} has {len(values)} values; a question is grouped by at most {MAX_GROUPS}")
        asked = [replace(question, query=And((question.query, In(feature, (value,))))) for value in values]
        return dict(zip(values, self.batch(asked), strict=True))

    def overlap(self, first: Query, second: Query, of: Of = "count") -> Overlap:
        """How far two audiences are the same."""
        parts = And((first, second)), And((first, Not(second))), And((second, Not(first)))
        both, alone, other = self.batch([Question(part, of) for part in parts])
        either = both.value + alone.value + other.value
        return Overlap(both, alone, other, both.value / either if either else 0.0)

    def formula(self, question: Question) -> Formula | None:
        """A count of few criteria is better for what is known of the whole population; others are the sample's."""
        if question.of != "count" or self.manifest.users or self.manifest.rows >= self.manifest.population:
            return None
        return formula(checked(question.query, self.schema), self.schema)

    def _checked(self, question: Question) -> Question:
        if question.of not in get_args(Of):
            raise AudienceError(f"a question is of {', '.join(get_args(Of))}; got {question.of!r}")
        if (question.measure is None) != (question.of in ("count", "users")):
            raise AudienceError(f"a measure goes with total and mean, not with {question.of!r}")
        if question.of == "users" and not self.manifest.users:
            raise AudienceError("the sample is of rows, users cannot be counted in it; build one with a user column")
        if isinstance(question.measure, str):
            self.schema.measure(question.measure)
        return replace(question, query=checked(question.query, self.schema))

    def _groups(self, answered: frozenset[str]) -> Groups:
        """Those of the shards that answered; what a shard holds does not change, so it is asked once."""
        with self._lock:
            if answered not in self._joined:
                if not answered <= self._known.keys():
                    self._known.update(self.counters.groups())
                known = [self._known[name] for name in sorted(answered & self._known.keys())]
                self._joined[answered] = _together(known)
            return self._joined[answered]

    def _answered(self, found: dict[str, list[Answer]]) -> float:
        shards = self.manifest.shards
        if len(found) == len(shards):
            return 1.0
        return sum(shards[name].weight for name in found) / sum(each.weight for each in shards.values())

    def _of(self, groups: Groups, question: Question) -> Groups:
        """Its population: all users if users are counted, else all rows."""
        users = sum(each.weight for each in self.manifest.shards.values()) if question.of == "users" else None
        return replace(groups, population=float(users if users is not None else self.manifest.population))


def _together(parts: Sequence[Groups]) -> Groups:
    return Groups(
        rows=np.sum([each.rows for each in parts], axis=0),
        sizes=np.max([each.sizes for each in parts], axis=0),
        squares=np.sum([each.squares for each in parts], axis=0),
        heaviest=max(each.heaviest for each in parts),
        population=0.0,
        users=parts[0].users,
    )


def _estimate(question: Question, summed: Answer, groups: Groups, answered: float) -> Reach:
    estimate = {"count": answer.count, "users": answer.count, "total": answer.total, "mean": answer.mean}[question.of]
    return estimate(summed, groups, answered)
