"""In-target reach, corrected for tags that lie: the sum over the sampled rows of weight times P(category | tags).

Neither paper has it in public. Two things are uncertain, which users the sample holds and how right the tags are; both
are in one interval, as independent errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from examples.audience.quality.combine import combined
from examples.audience.quality.result import Quality
from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In, Query
from examples.audience.reach.schema import AudienceError, Schema, nearest
from examples.audience.reach.shard import Chance

MAX_COMBINATIONS = 512


@dataclass(frozen=True, eq=False)
class Source:
    """feature: the column of the sample that holds its tags, None for untagged. quality: what is known of it."""

    feature: str
    quality: Quality


@dataclass(frozen=True)
class InTarget:
    """reach: expected rows of the category, with both uncertainties. tagged: rows that the tags alone would claim.

    sampling, quality: half of the interval that each would have alone.
    """

    reach: Reach
    tagged: Reach
    sampling: float
    quality: float


class Corrected:
    """Answers how many of a category there are, whatever their tags say.

    categories: in the order of Q's columns. base [K]: shares of the true categories, which only several sources need.
    """

    def __init__(
        self,
        estimator: Estimator,
        sources: Sequence[Source],
        categories: Sequence[str],
        base: Sequence[float] | None = None,
        temper: float = 1.0,
    ) -> None:
        if not sources or (len(sources) > 1 and base is None):
            raise AudienceError("one source at least, and with several the shares of the true categories (base)")
        self.estimator, self.sources, self.categories = estimator, tuple(sources), tuple(categories)
        self.base, self.temper = base, temper
        self._tags = [_tags_of(estimator.schema, source.feature, self.categories) for source in self.sources]
        sizes = [len(tags) for tags in self._tags]
        if math.prod(sizes) > MAX_COMBINATIONS:
            raise AudienceError(
                f"the sources have {math.prod(sizes)} combinations of tags, more than {MAX_COMBINATIONS}"
            )
        self._combinations = list(product(*(range(size) for size in sizes)))

    def reach(self, query: Query, category: str) -> InTarget:
        """Expected rows that match `query` and are of `category`."""
        if category not in self.categories:
            raise AudienceError(f"there is no category {category!r}{nearest(category, self.categories)}")
        wanted = self.categories.index(category)
        draws = self._chances(wanted)  # [1 + resamples, combinations]
        features = tuple(source.feature for source in self.sources)
        chance = Chance(features, tuple(map(float, draws[0])))
        cells = [self._cell(query, codes) for codes in self._combinations]
        claimed = And((query, In(features[0], (category,))))
        answers = self.estimator.batch([Question(query, "total", chance), Question(claimed), *map(Question, cells)])
        expected, tagged, *totals = answers
        by_quality = float(np.std(draws[1:] @ [each.value for each in totals])) if len(draws) > 1 else 0.0
        sampling = (expected.high - expected.value) if expected.rows else 0.0
        half = math.hypot(sampling, Z * by_quality)
        low, high = max(0.0, expected.value - half), expected.value + half
        found = Reach(expected.value, low, high, expected.rows, expected.answered)
        return InTarget(found, tagged, sampling, Z * by_quality)

    def _chances(self, wanted: int) -> np.ndarray:
        """P(category | tags) of every combination of tags, by resample of the sources' Q."""
        if len(self.sources) == 1:
            return self.sources[0].quality.chance(wanted)[:, self._tags[0]]
        tags = [[own[code] for own, code in zip(self._tags, codes, strict=True)] for codes in self._combinations]
        stacks = [source.quality.q_draws for source in self.sources]
        assert self.base is not None  # __init__ asks for it
        found = []
        for qs in zip(*(stack for stack in stacks if stack is not None), strict=True):
            found.append(combined(qs, tags, self.base, self.temper)[:, wanted])
        return np.array(found)

    def _cell(self, query: Query, codes: Sequence[int]) -> Query:
        schema = self.estimator.schema
        values = [schema.feature(source.feature).values[code] for source, code in zip(self.sources, codes, strict=True)]
        tagged = (In(source.feature, (value,)) for source, value in zip(self.sources, values, strict=True))
        return And((query, *tagged))


def _tags_of(schema: Schema, feature: str, categories: Sequence[str]) -> list[int]:
    """The tag that each value of the feature is: 0 for None, 1 + the number of its category."""
    found = []
    for value in schema.feature(feature).values:
        if value is not None and value not in categories:
            raise AudienceError(
                f"{feature!r} has the value {value!r}, which is no category{nearest(value, categories)}"
            )
        found.append(0 if value is None else 1 + list(categories).index(str(value)))
    return found
