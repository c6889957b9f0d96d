"""In-target reach, corrected for tags that lie: the sum over the sampled rows of weight times P(category | tags).

Neither paper has it in public. Three things are uncertain: which users the sample holds, how right the tags are, and
what chance did to so many users. All are in one interval, as independent errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from examples.audience.quality.combine import combined
from examples.audience.quality.result import Quality
from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Query
from examples.audience.reach.schema import AudienceError, Schema, nearest
from examples.audience.reach.shard import Chance

MAX_COMBINATIONS = 512
DRAWS = 200
"""Of the sample's counts, to see what they leave uncertain."""


@dataclass(frozen=True, eq=False)
class Source:
    """feature: the column of the sample that holds its tags, None for untagged. quality: what is known of it."""

    feature: str
    quality: Quality


@dataclass(frozen=True)
class InTarget:
    """reach: expected rows of the category, with all uncertainties. tagged: rows that the tags alone would claim.

    sampling, quality, chance: half of the interval that each would have alone.
    """

    reach: Reach
    tagged: Reach
    sampling: float
    quality: float
    chance: float


Holds = Literal["tags", "errors"]
"""What stays the same in every audience: P(category | tags), or P(tags | category), how a source errs."""


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

    def reach(self, query: Query, category: str, holds: Holds = "tags") -> InTarget:
        """Expected rows that match `query` and are of `category`.

        holds="tags": whoever has a tag is of the category with the same chance in every audience; then the answer is a
        sum over rows. Wrong for a query whose features say something of the category themselves. holds="errors":
        a source errs alike in every audience, given the truth; then the audience has the mix of categories that
        most likely gives its tags (Saerens et al. 2002), less biased and less certain.
        """
        if category not in self.categories:
            raise AudienceError(f"there is no category {category!r}{nearest(category, self.categories)}")
        if holds not in get_args(Holds):
            raise AudienceError(f"`holds` is one of {', '.join(get_args(Holds))}; got {holds!r:.40}")
        wanted = self.categories.index(category)
        source = self.sources[0].feature
        known = category in self.estimator.schema.feature(source).values  # else no row at all is tagged so
        claimed = And((query, In(source, (category,) if known else ())))
        cells = [self._cell(query, codes) for codes in self._combinations]
        tagged, *totals = self.estimator.batch([Question(claimed), *map(Question, cells)])
        chances = self._chances()  # [1 + resamples, combinations, K]
        if holds == "tags":
            values, sampling = self._summed(query, totals, chances[:, :, wanted])
            p = chances[0, :, wanted]
            chance = Z * math.sqrt(float((p * (1 - p)) @ [each.value for each in totals]))
        else:
            values, sampling, chance = self._most_likely(totals, chances, wanted)
        by_quality = Z * float(np.std(values[1:])) if len(values) > 1 else 0.0
        half, value = math.hypot(sampling, by_quality, chance), float(values[0])
        rows, answered = sum(each.rows for each in totals), tagged.answered
        found = Reach(value, max(0.0, value - half), value + half, rows, answered)
        return InTarget(found, tagged, sampling, by_quality, chance)

    def _summed(self, query: Query, totals: Sequence[Reach], chances: np.ndarray) -> tuple[np.ndarray, float]:
        """Expected rows by resample of Q, and half of the sample's interval. chances [1 + resamples, combinations]."""
        values = chances @ [each.value for each in totals]
        combination = Question(self._cell(query, self._combinations[0]))
        if self.estimator.formula(combination) is not None:  # the combinations are known better than by the sample
            halves = [chance * (each.high - each.low) / 2 for chance, each in zip(chances[0], totals, strict=True)]
            return values, math.hypot(*halves)
        features = tuple(source.feature for source in self.sources)
        [direct] = self.estimator.batch([Question(query, "total", Chance(features, tuple(map(float, chances[0]))))])
        values[0] = direct.value
        return values, direct.high - direct.value if direct.rows else 0.0

    def _most_likely(
        self, totals: Sequence[Reach], chances: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, float, float]:
        """Likeliest rows by resample of Q, and half of the sample's interval and of that of chance."""
        everybody = [self._cell(Everybody(), codes) for codes in self._combinations]
        shares = np.array([each.value for each in self.estimator.batch([Question(each) for each in everybody])])
        joint = chances * (shares / shares.sum())[:, None]  # P(tags, category)
        errs = joint / np.maximum(joint.sum(1, keepdims=True), 1e-12)  # P(tags | category)
        counts = np.array([each.value for each in totals])
        values = mixed(np.broadcast_to(counts, (len(errs), len(counts))), errs)[:, wanted]
        halves = []
        for spread in (np.array([(each.high - each.low) / (2 * Z) for each in totals]), np.sqrt(counts)):
            drawn = np.maximum(np.random.default_rng(0).normal(counts, spread, (DRAWS, len(counts))), 0)
            found = mixed(drawn, np.broadcast_to(errs[0], (DRAWS, *errs[0].shape)))[:, wanted]
            halves.append(Z * float(np.std(found)))
        return values, halves[0], halves[1]

    def _chances(self) -> np.ndarray:
        """P(category | tags) of every combination of tags, by resample of the sources' Q: [1 + resamples, A, K]."""
        if len(self.sources) == 1:
            own = self.sources[0].quality
            return np.stack([own.chance(c)[:, self._tags[0]] for c in range(len(self.categories))], axis=2)
        tags = [[own[code] for own, code in zip(self._tags, codes, strict=True)] for codes in self._combinations]
        stacks = [source.quality.q_draws for source in self.sources]
        assert self.base is not None  # __init__ asks for it
        found = []
        for qs in zip(*(stack for stack in stacks if stack is not None), strict=True):
            found.append(combined(qs, tags, self.base, self.temper))
        return np.array(found)

    def _cell(self, query: Query, codes: Sequence[int]) -> Query:
        schema = self.estimator.schema
        values = [schema.feature(source.feature).values[code] for source, code in zip(self.sources, codes, strict=True)]
        tagged = (In(source.feature, (value,)) for source, value in zip(self.sources, values, strict=True))
        return And((query, *tagged))


def mixed(counts: np.ndarray, errs: np.ndarray, rounds: int = 300) -> np.ndarray:
    """How many of each category most likely gave the counts of tags, [B, K]; counts [B, A]; errs [B, A, K]: P(tags |
    category). Expectation-maximisation from an even mix."""
    found = np.repeat(counts.sum(1, keepdims=True) / errs.shape[2], errs.shape[2], axis=1)
    for _ in range(rounds):
        expected = np.maximum(np.einsum("bak,bk->ba", errs, found), 1e-12)
        new = found * np.einsum("ba,bak->bk", counts / expected, errs)
        if np.abs(new - found).max() < 1e-3:
            break
        found = new
    return found


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
