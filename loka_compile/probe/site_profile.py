"""A probe's knowledge of one GEMM, and how it is written into a profile file: JSON and named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from torch import Tensor

from loka_compile.probe.models import MODELS, Model
from loka_compile.probe.pairs import Estimated, Interval
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.segments import SegmentScore
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.site import Site


@dataclass(frozen=True)
class SiteProfile:
    """One GEMM over all measured calls.

    lhs, rhs: its operands. scores: by recipe, the worst over the calls on the real operands; drawn: with intervals, on
    operands drawn from the learned distributions. observed: batch, M, N, K of the largest call. segments: errors by
    segment, `feature=value`.
    """

    site: Site
    calls: int
    lhs: OperandStats
    rhs: OperandStats
    scores: Mapping[str, ErrorScore] = field(default_factory=dict)
    drawn: Mapping[str, Estimated] = field(default_factory=dict)
    observed: tuple[int, int, int, int] = (1, 0, 0, 0)
    segments: Mapping[str, SegmentScore] = field(default_factory=dict)

    @property
    def observed_batch(self) -> int:
        return self.observed[0]

    @property
    def observed_M(self) -> int:
        return self.observed[1]

    def error(self, recipe: str) -> ErrorScore | None:
        """The worse of the errors on real and on drawn operands, of these the worse end of the intervals; None if the
        recipe was not scored."""
        known = [self.scores[recipe]] if recipe in self.scores else []
        known += [self.drawn[recipe].cautious] if recipe in self.drawn else []
        return known[0].worst(known[-1]) if known else None

    def worst_segment(self, recipe: str) -> tuple[str, float, int]:
        """Name, MERE and scored rows of the segment that a recipe harms most."""
        scored = [(n, s.scores[recipe].mere, s.rows) for n, s in self.segments.items() if recipe in s.scores]
        return max(scored, key=lambda found: found[1], default=("", 0.0, 0))


def site_to_json(known: SiteProfile, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Plain data for a profile file. Tensors go into `tensors`, under names that begin with `name`."""
    return {
        "site": known.site.to_json(),
        "calls": known.calls,
        "observed": list(known.observed),
        "lhs": _stats_to_json(known.lhs, f"{name}.lhs", tensors),
        "rhs": _stats_to_json(known.rhs, f"{name}.rhs", tensors),
        "scores": {recipe: _plain(asdict(score)) for recipe, score in known.scores.items()},
        "drawn": {recipe: _estimated_to_json(each) for recipe, each in known.drawn.items()},
        "segments": {segment: _segment_to_json(each) for segment, each in known.segments.items()},
    }


def site_from_json(known: dict[str, Any], tensors: Mapping[str, Tensor]) -> SiteProfile:
    """Raises KeyError, TypeError or ValueError on what `site_to_json` did not write."""
    batch, m, n, k = map(int, known["observed"])
    return SiteProfile(
        site=Site.from_json(known["site"]),
        calls=int(known["calls"]),
        lhs=_stats_from_json(known["lhs"], tensors),
        rhs=_stats_from_json(known["rhs"], tensors),
        scores={name: ErrorScore(**_numbers(score)) for name, score in known["scores"].items()},
        drawn={name: _estimated_from_json(each) for name, each in known["drawn"].items()},
        segments={name: _segment_from_json(each) for name, each in known["segments"].items()},
        observed=(batch, m, n, k),
    )


def _segment_to_json(segment: SegmentScore) -> dict[str, Any]:
    return {"rows": segment.rows, "scores": {name: _plain(asdict(score)) for name, score in segment.scores.items()}}


def _segment_from_json(body: dict[str, Any]) -> SegmentScore:
    scores = {name: ErrorScore(**_numbers(score)) for name, score in body["scores"].items()}
    return SegmentScore(int(body["rows"]), scores)


def _estimated_to_json(estimated: Estimated) -> dict[str, Any]:
    intervals = {name: _plain(asdict(getattr(estimated, name))) for name in _INTERVALS}
    return {"pairs": estimated.pairs, **intervals}


def _estimated_from_json(body: dict[str, Any]) -> Estimated:
    return Estimated(int(body["pairs"]), *(Interval(**_numbers(body[name])) for name in _INTERVALS))


_INTERVALS = ("mere", "sqnr_db", "median_rel")


def _stats_to_json(stats: OperandStats, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    body = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "distribution"}
    if stats.distribution is not None:
        values = {f.name: getattr(stats.distribution, f.name) for f in fields(cast(Any, stats.distribution))}
        arrays = {key: value.cpu().contiguous() for key, value in values.items() if isinstance(value, Tensor)}
        tensors.update({f"{name}.{key}": value for key, value in arrays.items()})
        numbers = _plain({key: value for key, value in values.items() if key not in arrays})
        body["distribution"] = {"model": stats.model, "tensors": name, "numbers": numbers}
    return _plain({**body, "quantiles": [_plain({"": q})[""] for q in stats.quantiles]})


def _stats_from_json(body: dict[str, Any], tensors: Mapping[str, Tensor]) -> OperandStats:
    body = dict(body)
    stored, fallback = body.pop("distribution", None), str(body.pop("fallback"))
    quantiles = tuple(float(value) for value in body.pop("quantiles"))
    distribution = _model_from_json(stored, tensors) if stored is not None else None
    return OperandStats(**_numbers(body), quantiles=quantiles, distribution=distribution, fallback=fallback)


def _model_from_json(body: dict[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    kind, numbers = MODELS[body["model"]], _numbers(body["numbers"])
    arrays = {f.name: tensors[f"{body['tensors']}.{f.name}"] for f in fields(kind) if f.name not in numbers}
    return kind(**arrays, **numbers)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN: write them as strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, str) else v for k, v in values.items()}
