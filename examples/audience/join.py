"""In-target reach, corrected for tags that lie: the sum over the sampled rows of weight times P(category | tags).

Neither paper has it in public. Three things are uncertain: which users the sample holds, how right the tags are, and
what chance did to so many users. All are in one interval, as independent errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from examples.audience.quality import simplex
from examples.audience.quality.combine import combined, raked
from examples.audience.quality.result import Quality
from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Not, Or, Query
from examples.audience.reach.schema import AudienceError, Schema, nearest
from examples.audience.reach.shard import Chance

MAX_COMBINATIONS = 512
DRAWS = 200
"""Of the sample's counts, to see what they leave uncertain."""
ALIKE = 0.01
"""Chance, at least, of such tags, for a source to be taken to err in an audience as in the campaigns."""


@dataclass(frozen=True, eq=False)
class Source:
    """feature: the column of the sample that holds its tags, None for untagged. quality: what is known of it."""

    feature: str
    quality: Quality


@dataclass(frozen=True)
class InTarget:
    """reach: expected rows of the category, with all uncertainties. tagged: rows that the tags alone would claim.

    sampling, quality, chance: half of the interval that each would have alone. holds: what was taken to be the same in
    every audience. notes: reasons for doubt; where there are any the interval may be wider than those halves.
    """

    reach: Reach
    tagged: Reach
    sampling: float
    quality: float
    chance: float
    holds: str
    notes: tuple[str, ...] = ()


Holds = Literal["fits", "tags", "errors"]
"""What stays the same in every audience: P(category | tags), or P(tags | category), how a source errs."""


@dataclass(frozen=True, eq=False)
class _Found:
    """values [1 + resamples]: rows; sampling, chance: halves of intervals; alike: chance of such tags, None if not
    looked at."""

    values: np.ndarray
    sampling: float
    chance: float
    alike: float | None = None

    @property
    def halves(self) -> tuple[float, float, float]:
        """Of the sample, of Q, of chance."""
        return self.sampling, Z * float(np.std(self.values[1:])) if len(self.values) > 1 else 0.0, self.chance

    @property
    def ends(self) -> tuple[float, float]:
        half, value = math.hypot(*self.halves), float(self.values[0])
        return max(0.0, value - half), value + half


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
        self._margins = [  # which combinations have each tag of each source, [combinations, tags]
            np.eye(size)[[codes[place] for codes in self._combinations]] for place, size in enumerate(sizes)
        ]

    def reach(self, query: Query, category: str, holds: Holds = "fits") -> InTarget:
        """Expected rows that match `query` and are of `category`.

        holds="errors": a source errs alike in every audience, given the truth, whatever the criteria say of the
        category; then the audience has the mix of categories that most likely gives its tags (Saerens et al. 2002).
        "tags": whoever has a tag is of the category with the same chance in every audience; then the answer is a sum
        over rows, surer, and wrong where features say something of the category themselves. "fits": errors, as
        campaigns in which tags hold may be aimed at tags, which says nothing of other criteria; but where the campaigns
        bear out neither, or the audience's tags are none that such errors give, all that either would say.
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
        found = self._by_tags(query, totals, wanted) if holds == "tags" else self._by_errors(query, totals, wanted)
        low, high = found.ends
        notes, open_to = self._doubts(found, holds)
        if open_to and holds == "fits":
            other = self._by_tags(query, totals, wanted).ends
            low, high = min(low, other[0]), max(high, other[1])
        value, rows = float(found.values[0]), sum(each.rows for each in totals)
        reach = Reach(value, low, high, rows, tagged.answered)
        return InTarget(reach, tagged, *found.halves, "tags" if holds == "tags" else "errors", notes)

    def _doubts(self, found: _Found, holds: Holds) -> tuple[tuple[str, ...], bool]:
        """Notes, and whether the answer is open to either assumption."""
        notes, unsure = [], False
        for source in self.sources:
            known = source.quality.assumption
            if known is not None and not known.fits:
                notes.append(f"{source.feature}: {known}")
                unsure = True
            elif known is not None and holds == "tags" and known.holds == "errors":
                notes.append(f"{source.feature}: tags do not mean the same in all campaigns; {known}")
        odd = found.alike is not None and found.alike < ALIKE
        if odd:
            notes.append(
                f"the sources' errors do not give such tags as this audience has (p = {found.alike:.3f}): they err "
                "otherwise here"
            )
        return tuple(notes), unsure or odd

    def _by_tags(self, query: Query, totals: Sequence[Reach], wanted: int) -> _Found:
        chances = self._chances()[:, :, wanted]
        values, sampling = self._summed(query, totals, chances)
        p = np.clip(chances[0], 0, 1)
        return _Found(values, sampling, Z * math.sqrt(float((p * (1 - p)) @ [each.value for each in totals])))

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

    def _by_errors(self, query: Query, totals: Sequence[Reach], wanted: int) -> _Found:
        """Likeliest rows. Several sources are a composite likelihood (Lindsay 1988), each with the tags it gives by
        itself: its mix is right however they depend on each other, and all tags' scatter says how sure.
        """
        errs = self._errors()  # [1 + resamples, tags of all sources, K]
        criteria, about_tags = self._parted(query)
        audience = totals
        if about_tags:  # the mix of those from whom the tags' criteria choose
            audience = self.estimator.batch([Question(self._cell(criteria, codes)) for codes in self._combinations])
        counts = np.array([each.value for each in audience])
        kept = np.array([each.value for each in totals]) / np.maximum(counts, 1e-12)  # by the tags' criteria
        spread = np.array([(each.high - each.low) / (2 * Z) for each in audience])

        def rows(cells: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Rows of the category, and the errors of the tags that are left. cells [B, combinations]."""
            tags = cells @ np.hstack(self._margins) / len(self.sources)
            mix = simplex.likeliest_mix(tags, errors)
            left = tags - (errors @ mix[:, :, None])[:, :, 0]
            if not about_tags:
                return mix[:, wanted], left
            chances = raked(errors * len(self.sources), mix, cells, self._margins)[:, :, wanted]
            return (chances * cells * kept).sum(1), left

        values, rest = rows(np.broadcast_to(counts, (len(errs), len(counts))), errs)
        first, halves, noise = np.broadcast_to(errs[0], (DRAWS, *errs[0].shape)), [], np.zeros((DRAWS, errs.shape[1]))
        for seed, scale in enumerate((spread, np.sqrt(counts))):
            drawn = np.maximum(np.random.default_rng(seed).normal(counts, scale, (DRAWS, len(counts))), 0)
            found, left = rows(drawn, first)
            noise += left - left.mean(0)
            halves.append(Z * float(np.std(found)))
        if len(errs) > 1:
            noise += np.resize(rest[1:] - rest[1:].mean(0), noise.shape)
        scale = np.maximum(noise.std(0), 1e-9)
        farther = ((noise / scale) ** 2).sum(1) >= ((rest[0] / scale) ** 2).sum()
        return _Found(values, halves[0], halves[1], float((1 + farther.sum()) / (1 + DRAWS)))

    def _parted(self, query: Query) -> tuple[Query, bool]:
        """The criteria that are not about sources' tags, and whether there are others. Of these nothing follows by how
        sources err: they choose among the tags themselves."""
        names = {source.feature for source in self.sources}
        parts = list(_parts(query))
        others = tuple(part for part in parts if not names & _features(part))
        return (And(others) if others else Everybody()), len(others) < len(parts)

    def _errors(self) -> np.ndarray:
        """P(tag | category) of every tag of every source, by resample, the sources one below the other and each
        divided by their number: [1 + resamples, tags, K].

        Where campaigns bear out that tags hold, Q is that of the sample, and Bayes with its tags gives the errors.
        """
        found = []
        for source, own in zip(self.sources, self._tags, strict=True):
            if source.quality.errors_draws is not None:
                errs = source.quality.errors_draws[:, own]
            else:
                values = self.estimator.schema.feature(source.feature).values
                everybody = [Question(In(source.feature, (value,))) for value in values]
                shares = np.array([each.value for each in self.estimator.batch(everybody)])
                q = np.stack([source.quality.chance(c)[:, own] for c in range(len(self.categories))], axis=2)
                errs = q * (shares / shares.sum())[:, None]
            found.append(errs / np.maximum(errs.sum(1, keepdims=True), 1e-12) / len(self.sources))
        least = min(map(len, found))
        return np.concatenate([each[:least] for each in found], axis=1)

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


def _parts(query: Query) -> Iterator[Query]:
    """What all have to meet."""
    if isinstance(query, And):
        for each in query.all:
            yield from _parts(each)
    else:
        yield query


def _features(query: Query) -> set[str]:
    match query:
        case In(feature, _):
            return {feature}
        case Not(of):
            return _features(of)
        case And(parts) | Or(parts):
            return set().union(*map(_features, parts))
    return set()


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
