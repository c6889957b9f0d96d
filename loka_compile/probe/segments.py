"""Errors by segment: of the rows of a domain, a country, a device, so that a minority is not averaged away.

Every call of the model comes with labels of its batch's rows. The rows that are scored are a stratified sample of them
(sampling.py), at least ROWS of every segment where there are as many. A GEMM's rows are the batch's, in the batch's
order, if it has as many or a multiple of them (a sequence a row, say); otherwise nothing is said of it by segment. In
grad_weight, a sum over the batch, a segment's error is that of its own terms, with everybody's scales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loka_compile.probe.score import ErrorScore, emulate, product, runs, score
from loka_compile.sampling.source_quality import Assessment, assess
from loka_compile.sampling.stratified import Sample, stratified_sample
from loka_compile.spec.error_budget import ErrorBudget
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site

LabelsOf = Callable[..., Mapping[str, Any]]
"""Called with what the model is called with: feature -> a label, integer or string, for each row of the batch."""

ROWS = 32
"""Rows of a segment that a call is scored on, at least."""
COLUMNS = 128
"""Columns that they are scored on; in grad_weight, of both operands."""
MAX_VALUES = 64
"""Most values of a feature."""
FEW = 8
"""Scored on fewer rows than this, a segment is shown and decides nothing."""


@dataclass(frozen=True)
class SegmentScore:
    """rows: that were scored. scores: by recipe, the mean over these rows."""

    rows: int = 0
    scores: Mapping[str, ErrorScore] = field(default_factory=dict)

    def joined(self, other: SegmentScore) -> SegmentScore:
        """The errors over the rows of both."""
        rows = self.rows + other.rows
        share = other.rows / rows
        scores = {name: self.scores.get(name, found).mean(found, share) for name, found in other.scores.items()}
        return SegmentScore(rows, {**self.scores, **scores})


@dataclass(frozen=True)
class Source:
    """Whom the calibration rows stand for. shares: feature -> value -> share of the `rows` seen. production: the same
    of the traffic that the profile is to speak for; empty if nothing is known of it."""

    rows: int
    shares: Mapping[str, Mapping[str, float]]
    production: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def assess(self, threshold: float) -> Assessment | None:
        """Whether these rows can speak for production; None if nothing is known of it."""
        return assess(self.shares, self.production, threshold, rows=self.rows) if self.production else None


class Labels:
    """The labels of one call's batch: each feature's values, and which of them each row has. Raises ValueError on what
    cannot be labels."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        columns = {name: _numbered(name, column) for name, column in given.items()}
        self.values = {name: values for name, (values, _) in columns.items()}
        self.codes = {name: codes for name, (_, codes) in columns.items()}
        lengths = {name: len(codes) for name, codes in self.codes.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"segments: expected a label for every row of the batch; the features have {lengths}")
        self.batch = next(iter(lengths.values()))

    def counts(self, name: str) -> dict[str, int]:
        return dict(zip(self.values[name], self.codes[name].bincount().tolist(), strict=True))

    def segments(self) -> dict[str, Tensor]:
        """(batch,) bool by segment, `feature=value`."""
        return {
            f"{name}={value}": self.codes[name] == code
            for name, values in self.values.items()
            for code, value in enumerate(values)
        }

    def sample(self, rows: int, seed: int) -> Sample:
        """About `rows` rows, of every segment at least ROWS or all."""
        required = sum(min(ROWS, size) for name in self.values for size in self.counts(name).values())
        count = min(self.batch, max(rows, required))
        return stratified_sample(self.codes, count, seed=seed, segments=list(self.codes), min_per_segment=ROWS)


class Watch:
    """The segments seen so far, and the labels of the call that is running.

    rows: about how many are scored a call. production: shares as in `Source`.
    """

    def __init__(
        self, labels_of: LabelsOf, production: Mapping[str, Mapping[Any, float]], rows: int, seed: int
    ) -> None:
        self.labels_of, self.rows, self.seed = labels_of, rows, seed
        self.production = {name: {str(v): float(x) for v, x in by.items()} for name, by in production.items()}
        self.seen: dict[str, Counter[str]] = {}
        self.calls = 0
        self.batch = 0
        self.masks: dict[str, Tensor] = {}
        self.picked = torch.empty(0, dtype=torch.int64, device="cpu")

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A call of the model with these inputs; its backward belongs to it, until the next call."""
        labels = Labels(self.labels_of(*args, **kwargs))
        for name in labels.values:
            self.seen.setdefault(name, Counter()).update(labels.counts(name))
        self.batch, self.masks = labels.batch, labels.segments()
        self.picked = labels.sample(self.rows, self.seed + self.calls).rows
        self.calls += 1

    def source(self) -> Source | None:
        """Raises ValueError where production has a feature that the rows have no labels for."""
        if not self.seen:
            return None
        rows = max(sum(counts.values()) for counts in self.seen.values())
        if absent := sorted(self.production.keys() - self.seen.keys()):
            raise ValueError(f"production has shares of {absent}; the rows are labelled by {sorted(self.seen)}")
        shares = {
            name: {value: count / sum(counts.values()) for value, count in sorted(counts.items())}
            for name, counts in sorted(self.seen.items())
        }
        return Source(rows, shares, self.production)

    def scores(
        self, site: Site, lhs: Tensor, rhs: Tensor, recipes: Iterable[Recipe], amax: Any, generator: torch.Generator
    ) -> dict[str, SegmentScore]:
        """Every recipe's errors by segment; empty where the GEMM's rows are not the batch's."""
        if not self.batch:
            return {}
        dim = rows_dim(site, lhs, self.batch)
        if dim is None:
            return {}
        if site.role == "grad_weight":
            return self._of_terms(site, lhs, rhs, recipes, amax, generator)
        # one of the rows that a row of the batch has become
        repeats = lhs.shape[dim] // self.batch
        rows = self.picked * repeats + torch.randint(repeats, self.picked.shape, generator=generator, device="cpu")
        lhs = lhs.index_select(dim, rows.to(lhs.device))
        rhs = rhs.index_select(0, rows.to(rhs.device)) if dim == 0 and lhs.dim() == 3 else rhs
        if rhs.shape[-1] > COLUMNS:
            rhs = rhs.index_select(-1, runs(rhs.shape[-1], COLUMNS, generator).to(rhs.device))
        reference = product(lhs, rhs)
        outs = {recipe.name: emulate(recipe, lhs, rhs, site.gradient, amax) for recipe in recipes}
        found = {}
        for name, mask in self.masks.items():
            own = mask[self.picked].nonzero().flatten().to(lhs.device)
            if len(own):
                ref = reference.index_select(dim, own)
                errors = {recipe: score(out.index_select(dim, own), ref) for recipe, out in outs.items()}
                found[name] = SegmentScore(len(own), errors)
        return found

    def _of_terms(
        self, site: Site, lhs: Tensor, rhs: Tensor, recipes: Iterable[Recipe], amax: Any, generator: torch.Generator
    ) -> dict[str, SegmentScore]:
        """grad_weight: the sum over a segment's rows alone."""
        if lhs.shape[-2] > COLUMNS:
            lhs = lhs.index_select(-2, runs(lhs.shape[-2], COLUMNS, generator).to(lhs.device))
        if rhs.shape[-1] > COLUMNS:
            rhs = rhs.index_select(-1, runs(rhs.shape[-1], COLUMNS, generator).to(rhs.device))
        repeats = lhs.shape[-1] // self.batch
        found = {}
        for name, mask in self.masks.items():
            keep = mask.repeat_interleave(repeats).to(lhs.device)
            reference = product(lhs[..., keep], rhs[..., keep, :])
            errors = {r.name: score(emulate(r, lhs, rhs, site.gradient, amax, keep), reference) for r in recipes}
            found[name] = SegmentScore(int(mask.sum()), errors)
        return found


def rows_dim(site: Site, lhs: Tensor, batch: int) -> int | None:
    """The dimension of the left operand that the batch's rows run along, None if there is none."""
    if site.role == "grad_weight":
        return -1 if lhs.dim() == 2 and lhs.shape[-1] % batch == 0 and lhs.shape[-1] else None
    along = [dim for dim in range(lhs.dim() - 1) if lhs.shape[dim] and lhs.shape[dim] % batch == 0]
    return along[0] if along else None


def unsafe(segments: Mapping[str, SegmentScore], recipe: str, budget: ErrorBudget) -> tuple[str, str] | None:
    """The worst segment beyond the budget in this recipe, and how; None where there is none."""
    judged = [(name, each) for name, each in segments.items() if each.rows >= FEW and recipe in each.scores]
    errors = {name: each.scores[recipe] for name, each in judged}
    missing = [(name, each) for name, each in judged if not budget.holds(errors[name].mere, errors[name].sqnr_db)]
    if not missing:
        return None
    by_mere = [(name, each) for name, each in missing if errors[name].mere > budget.max_mere]
    if by_mere:
        name, worst = max(by_mere, key=lambda found: errors[found[0]].mere)
    else:
        name, worst = min(missing, key=lambda found: errors[found[0]].sqnr_db)
    return name, budget.missed(errors[name].mere, errors[name].sqnr_db, f" on its {worst.rows} rows")[0]


def _numbered(name: str, column: Any) -> tuple[list[str], Tensor]:
    """The values of a feature in order, as text, and the place of each row's."""
    rows = column.tolist() if hasattr(column, "tolist") else list(column)
    if not isinstance(rows, list) or not all(isinstance(label, int | str) for label in rows):
        raise ValueError(f"segments: {name!r} must be one integer or string a row, got {type(column).__name__}")
    values = sorted(set(rows), key=lambda label: (str(type(label)), label))
    if len(values) > MAX_VALUES:
        raise ValueError(
            f"segments: {name!r} has {len(values)} values in one batch, at most {MAX_VALUES} can be told apart: "
            "put them into buckets (probe.strata.quantile_buckets)"
        )
    places = {value: place for place, value in enumerate(values)}
    return [str(value) for value in values], torch.tensor([places[label] for label in rows], device="cpu")
