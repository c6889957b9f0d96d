"""The trade-off advertisers want: reach against expected performance as criteria are loosened, cheapest first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from examples.audience.reach.answer import Reach
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Query, Range, checked, contradiction, walk
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
    to its number's next bucket. What gains nobody is named with the step that follows. After `steps` the last point is
    everybody. measure: whose mean is the performance, clicks a person say.
    """
    estimator.schema.measure(measure)
    parts = tuple(_merged(checked(query, estimator.schema)))
    point = _points(estimator, [(_and(parts), None)], measure)[0]
    points, idle = [point], []
    while parts and len(points) < min(steps, MAX_STEPS):
        options = _relaxations(parts, estimator.schema)
        tried = _points(estimator, [(_and(changed), words) for changed, words in options], measure)
        wider = [i for i, each in enumerate(tried) if each.reach.value > point.reach.value]
        chosen = min(wider, key=lambda i: _price(point, tried[i])) if wider else _shortest(options)
        parts = options[chosen][0]
        if not wider:
            idle.append(options[chosen][1])
            continue
        point = replace(tried[chosen], loosened="; ".join([*idle, options[chosen][1]]))
        points.append(point)
        idle = []
    if parts or idle:
        idle += [f"{_name(part)} does not matter" for part in parts]
        points += _points(estimator, [(Everybody(), "; ".join(idle))], measure)
    return points


def _merged(query: Query) -> list[Query]:
    """The criteria of a conjunction; those of one feature or number are one: 25 <= age and age < 30."""
    found: list[Query] = []
    places: dict[str, int] = {}
    for part in _flat(query):
        at = places.setdefault(_name(part), len(found)) if isinstance(part, In | Range) else len(found)
        if at == len(found):
            found.append(part)
        else:
            found[at] = _both(found[at], part)
    return found


def _flat(query: Query) -> Iterator[Query]:
    if isinstance(query, And):
        for part in query.all:
            yield from _flat(part)
    elif not isinstance(query, Everybody):
        yield query


def _both(one: Query, other: Query) -> Query:
    """Raises AudienceError where nobody matches both."""
    if nobody := contradiction(And((one, other))):
        raise AudienceError(f"nobody matches: {nobody}")
    if isinstance(one, In) and isinstance(other, In):
        kept = set(other.values)
        return In(one.feature, tuple(value for value in one.values if value in kept))
    if isinstance(one, Range) and isinstance(other, Range):
        lows = [each for each in (one.low, other.low) if each is not None]
        highs = [each for each in (one.high, other.high) if each is not None]
        return Range(one.number, max(lows, default=None), min(highs, default=None))
    return And((one, other))


def _points(estimator: Estimator, queries: list[tuple[Query, str | None]], measure: str) -> list[Point]:
    questions = [Question(query) for query, _ in queries]
    means = [replace(each, of="mean", measure=measure) for each in questions]
    answers = estimator.batch([*questions, *means])
    pairs = zip(queries, answers[: len(queries)], answers[len(queries) :], strict=True)
    return [Point(query, words, reach, performance) for (query, words), reach, performance in pairs]


def _price(before: Point, after: Point) -> tuple[float, float]:
    """Performance lost per person gained, then how few are gained. Where nobody matched before, the best performance is
    cheapest; what has a performance that nobody knows is dearest."""
    gained = after.reach.value - before.reach.value
    if math.isnan(after.performance.value):
        return math.inf, -gained
    known = 0.0 if math.isnan(before.performance.value) else before.performance.value
    return (known - after.performance.value) / gained, -gained


def _shortest(options: list[tuple[tuple[Query, ...], str]]) -> int:
    """The first that drops a criterion."""
    return min(range(len(options)), key=lambda i: len(options[i][0]))


def _relaxations(parts: tuple[Query, ...], schema: Schema) -> list[tuple[tuple[Query, ...], str]]:
    found: list[tuple[tuple[Query, ...], str]] = []
    for i, part in enumerate(parts):
        others = parts[:i], parts[i + 1 :]
        found += [((*others[0], wider, *others[1]), words) for wider, words in _wider(part, schema)]
        found.append(((*others[0], *others[1]), f"{_name(part)} does not matter"))
    return found


def _wider(part: Query, schema: Schema) -> list[tuple[Query, str]]:
    """The criteria one step looser than `part`."""
    steps: list[tuple[Query, str]] = []
    if isinstance(part, In) and (whole := schema.whole_numbers(part.feature)):  # ordered: widened at its ends
        own = set(part.values)
        inside = [i for i, value in enumerate(whole) if value in own]
        for i in (min(inside, default=0) - 1, max(inside, default=-1) + 1):
            if 0 <= i < len(whole):
                steps.append((In(part.feature, (*part.values, whole[i])), f"{part.feature} may be {whole[i]}"))
    if isinstance(part, Range) and (edges := schema.number(part.number).edges):
        number, low, high = part.number, part.low, part.high
        if low is not None:
            lower = max((edge for edge in edges if edge < low), default=None)
            words = f"{number} may be from {lower:,.4g}" if lower is not None else f"{number} may be as low as it gets"
            steps.append((Range(number, lower, high), words))
        if high is not None:
            higher = min((edge for edge in edges if edge > high), default=None)
            words = (
                f"{number} may be up to {higher:,.4g}" if higher is not None else f"{number} may be as high as it gets"
            )
            steps.append((Range(number, low, higher), words))
    return [step for step in steps if step[0] != Range(_name(part))]  # no end at all: that is to drop it


def _name(part: Query) -> str:
    """The features and numbers that it is about."""
    own = [each.feature if isinstance(each, In) else each.number for each in walk(part) if isinstance(each, In | Range)]
    return " and ".join(sorted(set(own))) or "a criterion"


def _and(parts: tuple[Query, ...]) -> Query:
    return parts[0] if len(parts) == 1 else And(parts) if parts else Everybody()
