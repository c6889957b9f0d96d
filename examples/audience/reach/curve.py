"""The trade-off advertisers want: reach against expected performance as criteria are loosened, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.audience.reach.answer import Reach
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Query, Range, checked
from examples.audience.reach.schema import AudienceError, Schema

MAX_STEPS = 32


@dataclass(frozen=True)
class Point:
    """loosened: what was given up since the point before, in words, or None for the first."""

    query: Query
    loosened: str | None
    reach: Reach
    performance: Reach


def curve(estimator: Estimator, query: Query, measure: str, steps: int = MAX_STEPS) -> list[Point]:
    """From the query itself to everybody: at each step the relaxation that loses least performance per person gained.

    A relaxation drops a criterion of a conjunction, adds the next value to a set of ordered values, or widens a range
    to its number's next bucket. measure: whose mean is the performance, clicks a person say.
    """
    estimator.schema.measure(measure)
    query = checked(query, estimator.schema)
    parts = query.all if isinstance(query, And) else (query,)
    point = _points(estimator, [(query, None)], measure)[0]
    points = [point]
    while len(points) <= min(steps, MAX_STEPS) and not all(isinstance(each, Everybody) for each in parts):
        options = _relaxations(parts, estimator.schema)
        tried = _points(estimator, [(_and(changed), words) for changed, words in options], measure)
        wider = [(each, i) for i, each in enumerate(tried) if each.reach.value > point.reach.value]
        if not wider:
            shorter = max(options, key=lambda option: sum(isinstance(each, Everybody) for each in option[0]))
            parts = shorter[0]
            continue
        here = point
        point, chosen = min(wider, key=lambda option: _price(here, option[0]))
        parts = options[chosen][0]
        points.append(point)
    return points


def _points(estimator: Estimator, queries: list[tuple[Query, str | None]], measure: str) -> list[Point]:
    questions = [Question(query) for query, _ in queries]
    means = [replace(each, of="mean", measure=measure) for each in questions]
    answers = estimator.batch([*questions, *means])
    pairs = zip(queries, answers[: len(queries)], answers[len(queries) :], strict=True)
    return [Point(query, words, reach, performance) for (query, words), reach, performance in pairs]


def _price(before: Point, after: Point) -> float:
    """Performance lost per person gained. Where nobody matched before, the best performance is cheapest."""
    gained = after.reach.value - before.reach.value
    known = before.performance.value if before.reach.rows else 0.0
    return (known - after.performance.value) / gained


def _relaxations(parts: tuple[Query, ...], schema: Schema) -> list[tuple[tuple[Query, ...], str]]:
    found: list[tuple[tuple[Query, ...], str]] = []
    for i, part in enumerate(parts):
        if isinstance(part, Everybody):
            continue
        for wider, words in _wider(part, schema):
            found.append(((*parts[:i], wider, *parts[i + 1 :]), words))
    if not found:
        raise AudienceError("there is nothing left to loosen")
    return found


def _wider(part: Query, schema: Schema) -> list[tuple[Query, str]]:
    """The criteria one step looser than `part`; the last of them is none at all."""
    steps: list[tuple[Query, str]] = []
    if isinstance(part, In):
        values = schema.feature(part.feature).values
        if schema.whole_numbers(part.feature) is not None:  # ordered values are widened at their ends
            inside = [i for i, value in enumerate(values) if value in part.values and value is not None]
            for i in (min(inside, default=0) - 1, max(inside, default=-1) + 1):
                if 0 <= i < len(values) and values[i] is not None:
                    steps.append((In(part.feature, (*part.values, values[i])), f"{part.feature} may be {values[i]!r}"))
    if isinstance(part, Range) and (edges := schema.number(part.number).edges):
        low, high = part.low, part.high
        if low is not None:
            lower = max((edge for edge in edges if edge < low), default=None)
            steps.append((_range(part.number, lower, high), f"{part.number} may be from {lower}"))
        if high is not None:
            higher = min((edge for edge in edges if edge > high), default=None)
            steps.append((_range(part.number, low, higher), f"{part.number} may be up to {higher}"))
    return [*steps, (Everybody(), f"{_name(part)} does not matter")]


def _range(number: str, low: float | None, high: float | None) -> Query:
    return Everybody() if low is None and high is None else Range(number, low, high)


def _name(part: Query) -> str:
    return part.feature if isinstance(part, In) else part.number if isinstance(part, Range) else "a criterion"


def _and(parts: tuple[Query, ...]) -> Query:
    left = tuple(each for each in parts if not isinstance(each, Everybody))
    return left[0] if len(left) == 1 else And(left) if left else Everybody()
