"""A decision: what a plan says of one site, with the scores and the reasons behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sympy

from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site

KEEP = "keep"


@dataclass(frozen=True)
class Candidate:
    """A recipe run by a provider's kernel; `keep` leaves the GEMM as the model has it."""

    recipe: str
    provider: str = ""

    def __str__(self) -> str:
        return f"{self.recipe}/{self.provider}" if self.provider else self.recipe


KEPT = Candidate(KEEP)


@dataclass(frozen=True)
class Score:
    """A candidate at a site: its errors and its times.

    mere, sqnr_db, median_rel: errors on the site's real and drawn operands, the worse of both. time_us: of one call,
    casts included, None where it was not timed. time_source: where the time comes from.
    """

    mere: float = 0.0
    sqnr_db: float = float("inf")
    median_rel: float = 0.0
    time_us: float | None = None
    time_source: str = ""

    @property
    def noise(self) -> float:
        """Power of the noise over that of the signal; at most a million, at least one in 1e15."""
        return 10 ** (-min(max(self.sqnr_db, -60.0), 150.0) / 10)


@dataclass(frozen=True)
class Range:
    """From `rows` rows on, up to the next range, `chosen` is the choice."""

    rows: int
    chosen: Candidate


@dataclass(frozen=True)
class Decision:
    """The choice for a site and its reason. `rejected` lists every other candidate with its reasons.

    ranges: where the choice depends on the batch, all choices by number of rows, ascending from 0; `chosen` is that of
    the batch at hand. Rows are the product of the site's sizes that depend on the batch.
    """

    site: Site
    chosen: Candidate
    reason: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    rejected: tuple[tuple[Candidate, str], ...] = ()
    ranges: tuple[Range, ...] = ()

    @property
    def lowered(self) -> bool:
        return self.chosen.recipe != KEEP

    @property
    def recipes(self) -> tuple[str, ...]:
        """Its lowered choices, here and at other batches."""
        recipes = [self.chosen.recipe, *(each.chosen.recipe for each in self.ranges)]
        return tuple(recipe for recipe in dict.fromkeys(recipes) if recipe != KEEP)

    @property
    def score(self) -> Score:
        return self.scores.get(str(self.chosen), Score())

    @property
    def before(self) -> Score:
        return self.scores.get(KEEP, Score())

    def demoted(self, reason: str) -> Decision:
        """The same site kept as it was at every batch, the choice moved to the rejected ones."""
        return replace(self, chosen=KEPT, reason=reason, rejected=(*self.rejected, (self.chosen, reason)), ranges=())

    def lost(self, reason: str) -> Decision:
        """The same site kept where this choice held; other ranges stay."""
        ranges = (Range(r.rows, KEPT) if r.chosen == self.chosen else r for r in self.ranges)
        merged = [each for each, before in _with_before(ranges) if before is None or each.chosen != before.chosen]
        return replace(self.demoted(reason), ranges=tuple(merged) if len(merged) > 1 else ())

    def rows(self, site: Site) -> sympy.Expr:
        """How many rows a graph's site has: of its sizes, those multiplied that depend on the batch in the plan's."""
        names = [name for name in ("batch", "M", "N", "K") if getattr(self.site, name).free_symbols]
        return math.prod((getattr(site, name) for name in names), start=sympy.Integer(1))

    def bounds(self, rows: int) -> tuple[int, int | None]:
        """The rows from which, and below which, the choice for `rows` rows holds; None: for all from there on."""
        starts = [each.rows for each in self.ranges]
        index = max((i for i, start in enumerate(starts) if start <= rows), default=0)
        return starts[index], starts[index + 1] if index + 1 < len(starts) else None

    def at(self, rows: int) -> Decision:
        """With the choice for that many rows."""
        low, high = self.bounds(rows)
        chosen = next(each.chosen for each in self.ranges if each.rows == low)
        if chosen == self.chosen:
            return self
        here = f"from {low} rows on" if low else ""
        if high is not None:
            here = f"from {low} to {high - 1} rows" if low else f"below {high} rows"
        rejected = tuple((c, reason) for c, reason in self.rejected if c != chosen)
        reason = f"best for all sites together {here}, by the times at several batches"
        if self.lowered:
            rejected = (*rejected, (self.chosen, f"not the best {here}"))
        return replace(self, chosen=chosen, reason=reason, rejected=rejected)


# ---------------------------------------------------------------- JSON


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Plain data for a plan file."""
    return {
        "chosen": str(decision.chosen),
        "reason": decision.reason,
        "site": decision.site.to_json(),
        "scores": {name: _finite(asdict(score)) for name, score in decision.scores.items()},
        "rejected": {str(candidate): reason for candidate, reason in decision.rejected},
        "ranges": {str(each.rows): str(each.chosen) for each in decision.ranges},
    }


def decision_from_json(body: dict[str, Any]) -> Decision:
    """Raises KeyError, TypeError or ValueError on what is no decision."""
    return Decision(
        site=Site.from_json(body["site"]),
        chosen=_candidate(body["chosen"]),
        reason=checked(str, body["reason"]),
        scores={name: _score(score) for name, score in body["scores"].items()},
        rejected=tuple((_candidate(name), checked(str, reason)) for name, reason in body["rejected"].items()),
        ranges=_ranges(body["ranges"]),
    )


def _ranges(body: dict[str, str]) -> tuple[Range, ...]:
    ranges = tuple(Range(int(rows), _candidate(name)) for rows, name in body.items())
    starts = [each.rows for each in ranges]
    if starts and (starts[0] != 0 or starts != sorted(set(starts))):
        raise ValueError(f"ranges ascend from 0 rows, got {starts}")
    return ranges


def _with_before(ranges: Iterable[Range]) -> Iterator[tuple[Range, Range | None]]:
    before = None
    for each in ranges:
        yield each, before
        before = each


def _candidate(text: str) -> Candidate:
    candidate = Candidate(*text.split("/", 1))
    if candidate.recipe != KEEP and candidate.recipe not in RECIPES:
        raise ValueError(f"unknown recipe {candidate.recipe!r}; known are {', '.join(RECIPES)}")
    if (candidate.recipe == KEEP) == bool(candidate.provider):
        raise ValueError(f"{text!r}: a recipe has a provider behind a slash, keep has none")
    return candidate


def _finite(score: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: write it as a string. Six digits are more than any decision rests on."""
    return {name: _number_to_json(v) if isinstance(v, int | float) else v for name, v in score.items()}


def _number_to_json(value: float) -> float | str:
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _score(body: dict[str, Any]) -> Score:
    errors = {name: _number(body[name]) for name in ("mere", "sqnr_db", "median_rel")}
    time_us = None if body["time_us"] is None else _number(body["time_us"])
    return Score(**{**body, **errors, "time_us": time_us, "time_source": checked(str, body["time_source"])})


def _number(value: Any) -> float:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def checked(kind: type, value: Any) -> Any:
    """The value, if it is of this kind. Raises ValueError otherwise."""
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return value
