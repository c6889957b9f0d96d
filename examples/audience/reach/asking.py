"""Questions as plain data and answers as plain data, as the HTTP front and the commands have them.

reach     {"query": ..., "of": "count" | "users" | "total" | "mean", "measure": ..., "by": feature,
           "truth": "corrected", "category": ..., "holds": "fits" | "tags" | "errors"}
batch     {"questions": [what reach takes, ...]}
overlap   {"first": query, "second": query, "of": "count" | "users"}
curve     {"query": ..., "measure": ...}
forecast  {"query": ..., "day": feature, "days": 7, "of": "count" | "users"}
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from examples.audience.join import Corrected
from examples.audience.reach import query as queries
from examples.audience.reach.answer import Reach
from examples.audience.reach.curve import curve
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.forecast import forecast
from examples.audience.reach.schema import AudienceError, nearest
from examples.audience.reach.text import asked

FIELDS = {
    "reach": ("query", "of", "measure", "by", "truth", "category", "holds"),
    "batch": ("questions",),
    "overlap": ("first", "second", "of"),
    "curve": ("query", "measure"),
    "forecast": ("query", "day", "days", "of"),
}
"""What a question may say. Anything else is refused: a field that is not read would answer another question."""
MAX_BATCH = 256
"""Questions of one request."""
WHOLE = 1e-6
"""An exact count is this close to a whole number, relative to it, when its sums are rounded."""
Plain = dict[str, Any]


class Asking:
    """corrected: for questions about true categories, or None. seen: is told every estimate."""

    def __init__(
        self,
        estimator: Estimator,
        corrected: Corrected | None = None,
        seen: Callable[[Reach], None] = lambda reach: None,
    ) -> None:
        self.estimator, self.corrected, self.seen = estimator, corrected, seen

    def reach(self, body: Plain) -> Plain:
        """One question; with `by`, one answer a value of that feature, which is its `group`."""
        question = self._question("reach", body)
        if body.get("truth") is not None:
            return self._in_target(question, body)
        for name in ("category", "holds"):
            if body.get(name) is not None:
                raise AudienceError(f"`{name}` goes with `truth`: 'corrected'")
        if body.get("by") is not None:
            found = self.estimator.group_by(question, _name(body, "by", "a feature"))
            return {"by": [{"group": value, **self._plain(reach, question.of)} for value, reach in found.items()]}
        return self._noted(question, self.estimator.reach(question))

    def batch(self, body: Plain) -> Plain:
        """All that `reach` answers, in the order of the questions; the plain ones by the same counters."""
        _known("batch", body)
        several = body.get("questions")
        if not isinstance(several, list) or not 1 <= len(several) <= MAX_BATCH:
            raise AudienceError(f"`questions` is a list of 1 to {MAX_BATCH} questions")
        if not all(isinstance(each, dict) for each in several):
            raise AudienceError("a question is an object with `query`")
        alone = {i for i, each in enumerate(several) if each.keys() - {"query", "of", "measure"}}
        made, found = {}, {}
        for i, each in enumerate(several):
            try:
                if i in alone:
                    found[i] = self.reach(each)
                else:
                    made[i] = self._question("reach", each)
                    queries.checked(made[i].query, self.estimator.schema)
            except AudienceError as error:
                raise AudienceError(f"question {i + 1}: {error}") from None
        reaches = self.estimator.batch(list(made.values())) if made else []
        found |= {i: self._noted(made[i], reach) for i, reach in zip(made, reaches, strict=True)}
        return {"answers": [found[i] for i in range(len(several))]}

    def overlap(self, body: Plain) -> Plain:
        """first, second: in that audience alone."""
        _known("overlap", body)
        first, second = (asked(_needed(body, name, "an audience, as a query")) for name in ("first", "second"))
        of = _given(body, "of", "count")
        if of not in ("count", "users"):
            raise AudienceError(f"an overlap is of count or users; got {of!r:.40}")
        found = self.estimator.overlap(first, second, of)
        parts = {name: self._plain(getattr(found, name), of) for name in ("both", "first", "second")}
        return {**parts, "jaccard": found.jaccard}

    def curve(self, body: Plain) -> Plain:
        _known("curve", body)
        measures = ", ".join(map(repr, self.estimator.schema.measures)) or "none"
        measure = _name(body, "measure", f"a measure of the sample; there are {measures}")
        points = curve(self.estimator, _query(body), measure)
        return {
            "points": [
                {
                    "query": queries.to_json(point.query),
                    "loosened": point.loosened,
                    "reach": self._plain(point.reach, "count"),
                    "performance": self._plain(point.performance, "mean"),
                }
                for point in points
            ]
        }

    def forecast(self, body: Plain) -> Plain:
        question = self._question("forecast", body)
        days = _given(body, "days", 7)
        if not isinstance(days, int) or isinstance(days, bool):
            raise AudienceError(f"`days` is a whole number; got {days!r:.40}")
        found = forecast(self.estimator, question, _name(body, "day", "a feature with days such as 2026-11-29"), days)
        return {
            "past": {str(day): self._plain(reach, question.of) for day, reach in found.past.items()},
            "coming": {str(day): self._plain(reach, "forecast") for day, reach in found.coming.items()},
            "growth": found.growth,
        }

    def schema(self) -> Plain:
        """What can be asked for, and how old the sample is."""
        schema, manifest = self.estimator.schema, self.estimator.manifest
        return {
            "features": {each.name: list(each.values) for each in schema.features},
            "numbers": {each.name: list(each.edges) for each in schema.numbers},
            "measures": list(schema.measures),
            "users": manifest.users,
            "population": manifest.population,
            "rows": manifest.rows,
            "cover": list(manifest.cover),
            "categories": list(self.corrected.categories) if self.corrected else [],
            "sample": self.sample(),
        }

    def sample(self) -> Plain:
        """Which sample answers: when it was drawn, its age in seconds, of how many files, and what it is told by."""
        manifest = self.estimator.manifest
        return {
            "created": datetime.fromtimestamp(manifest.created, UTC).isoformat(timespec="seconds"),
            "age": round(time.time() - manifest.created, 1),
            "files": len(manifest.sources),
            "identity": manifest.identity,
        }

    def _question(self, what: str, body: Plain) -> Question:
        _known(what, body)
        measure = body.get("measure")
        if measure is not None and not isinstance(measure, str):
            raise AudienceError(f"`measure` is the name of one; got {measure!r:.40}")
        return Question(_query(body), _given(body, "of", "count"), measure)

    def _in_target(self, question: Question, body: Plain) -> Plain:
        if body["truth"] != "corrected":
            raise AudienceError(f"`truth` is 'corrected' or absent; got {body['truth']!r:.40}")
        if self.corrected is None:
            raise AudienceError("no source's quality is known here; name the file of campaigns by `--campaigns`")
        for name in ("by", "measure"):
            if body.get(name) is not None:
                raise AudienceError(f"`truth`: 'corrected' counts rows of a category; it does not go with `{name}`")
        if question.of != "count":
            raise AudienceError(f"`truth`: 'corrected' counts rows; it does not go with `of`: {question.of!r:.40}")
        names = ", ".join(map(repr, self.corrected.categories))
        category = _name(body, "category", f"a true category; there are {names}")
        found = self.corrected.reach(question.query, category, _given(body, "holds", "fits"))
        halves = {"sampling": found.sampling, "quality": found.quality, "chance": found.chance}
        plain = self._plain(found.reach, "expected")
        return (
            plain
            | {"tagged": self._plain(found.tagged, "count"), "half": halves, "holds": found.holds}
            | ({"notes": list(found.notes)} if found.notes else {})
        )

    def _noted(self, question: Question, reach: Reach) -> Plain:
        nobody = queries.contradiction(question.query)
        return self._plain(reach, question.of) | ({"note": nobody} if nobody else {})

    def _plain(self, reach: Reach, of: str) -> Plain:
        """JSON has no infinities: an end that is unknown is null. Exact counts are whole."""
        self.seen(reach)
        if of in ("count", "users") and reach.high - reach.low <= WHOLE * max(1.0, reach.value):
            whole = float(round(reach.value))
            if abs(whole - reach.value) <= WHOLE * max(1.0, reach.value):
                return asdict(reach) | {"value": whole, "low": whole, "high": whole}
        return {name: value if math.isfinite(value) else None for name, value in asdict(reach).items()}


def _query(body: Plain) -> queries.Query:
    return asked(body["query"]) if "query" in body else queries.Everybody()


def _known(what: str, body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in FIELDS[what]:
            raise AudienceError(f"a question of {what} has no field {name!r:.40}{nearest(name, FIELDS[what])}")


def _given(body: Plain, name: str, default: Any) -> Any:
    return default if body.get(name) is None else body[name]


def _needed(body: Plain, name: str, what: str) -> Any:
    if body.get(name) is None:
        raise AudienceError(f"`{name}` is missing: {what}")
    return body[name]


def _name(body: Plain, name: str, what: str) -> str:
    found = _needed(body, name, what)
    if not isinstance(found, str):
        raise AudienceError(f"`{name}` is the name of {what}; got {found!r:.40}")
    return found
