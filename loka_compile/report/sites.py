"""The sites of a report: what `explain` says of each, and beside it all candidates, refusals and operands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loka_compile.inspect.explanation import Explanation
from loka_compile.inspect.records import Record
from loka_compile.inspect.row import Row
from loka_compile.probe.profile import Profile
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import QUANTILES, OperandStats
from loka_compile.report.texts import Texts, number
from loka_compile.spec.decision import KEEP, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

NOTHING = Row("", "", "", "", "", "", "kept", None, None, None, None, None, "", "")
"""A row of which nothing is decided."""


@dataclass(frozen=True)
class Known:
    """What there is about one row: the site as its graph has it, its decision, its profile; None where unknown."""

    site: Site | None
    decision: Decision | None
    profile: SiteProfile | None


def of_explanation(
    explained: Explanation, plans: Sequence[Plan], records: Sequence[Record], profile: Profile | None, texts: Texts
) -> list[dict[str, Any]]:
    """One entry a row. plans: where decisions are looked up whose sites no graph has."""
    by_name = {record.name: record for record in records}
    placed = {record.name: {site.key: site for site in record.sites} for record in records}

    def known(row: Row) -> Known:
        site, decision = None, None
        if row.graphs:
            site = placed[row.graphs[0]].get(row.key)
            decision = by_name[row.graphs[0]].plan.find(site) if site is not None else None
        else:
            decision = next((plan.decisions[row.key] for plan in plans if row.key in plan.decisions), None)
            site = decision.site if decision is not None else None
        return Known(site, decision, profile.find(site) if profile is not None and site is not None else None)

    return [_entry(row, known(row), [by_name[name] for name in row.graphs], texts) for row in explained.rows]


def of_profile(profile: Profile, texts: Texts) -> list[dict[str, Any]]:
    """Nothing is decided: sites with their operands and the errors of recipes."""
    entries = []
    for key, known in profile.sites.items():
        row = replace(NOTHING, key=key, role=known.site.role, shape=known.site.shape)
        entry = _entry(row, Known(known.site, None, known), [], texts)
        errors = ((name, known.error(name)) for name in known.scores)
        entry["candidates"] = [
            [texts(name), *map(number, (e.mere, e.sqnr_db, e.median_rel)), None, -1, 0] for name, e in errors if e
        ]
        entries.append(entry | {"outcome": "profiled"})
    return entries


def _entry(row: Row, known: Known, records: Sequence[Record], texts: Texts) -> dict[str, Any]:
    site = known.site
    numbers = {
        name: number(getattr(row, name))
        for name in ("mere", "sqnr_db", "median_rel", "time_before_us", "time_after_us", "speedup")
    }
    return {
        "key": row.key,
        "module": site.fqn if site is not None else row.key.partition("#")[0],
        "role": row.role,
        "op": site.op if site is not None else "",
        "shape": row.shape,
        "dtype": str(site.dtype).removeprefix("torch.") if site is not None else "",
        "flops": _flops(site),
        "source": site.source if site is not None else "",
        "epilogue": site.epilogue if site is not None else "",
        "graphs": list(row.graphs),
        "recipe": row.recipe,
        "provider": row.provider,
        "runs_as": row.runs_as,
        "outcome": row.outcome,
        **numbers,
        "time_source": texts(row.time_source),
        "reason": texts(row.reason),
        "ranges": list(row.ranges),
        "candidates": candidates(known.decision, texts) if known.decision is not None else [],
        "done": [[texts(each) for each in found] for found in _done(row.key, records)],
        "refusals": [[texts(each) for each in found] for found in _refusals(row.key, records)],
        "operands": _operands(known.profile) if known.profile is not None else None,
    }


def candidates(decision: Decision, texts: Texts) -> list[list[Any]]:
    """[name, MERE, SQNR in dB, median relative error, µs, why not (-1: nothing said), 1 if it was chosen]"""
    rejected = {str(candidate): reason for candidate, reason in decision.rejected}
    names = dict.fromkeys([KEEP, str(decision.chosen), *decision.scores, *rejected])
    found = []
    for name in names:
        score, reason = decision.scores.get(name), rejected.get(name, "")
        errors = [None] * 3 if score is None else [number(v) for v in (score.mere, score.sqnr_db, score.median_rel)]
        time = None if score is None else number(score.time_us)
        found.append([texts(name), *errors, time, texts(reason) if reason else -1, int(name == str(decision.chosen))])
    return found


def _done(key: str, records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """Pass, graph, what it did, kernel."""
    found = ((s, r) for record in records for s in record.stages for r in s.rewrites if r.site == key)
    return list(dict.fromkeys((stage.name, stage.graph, r.did, r.kernel) for stage, r in found))


def _refusals(key: str, records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """Pass, graph, node, reason."""
    found = ((s, r) for record in records for s in record.stages for r in s.rejects if key in r.site.split(", "))
    return list(dict.fromkeys((stage.name, stage.graph, r.node, r.reason) for stage, r in found))


def _flops(site: Site | None) -> int | None:
    """None where a size is a symbol."""
    return int(site.flops) if site is not None and site.flops.is_number else None


def _operands(known: SiteProfile) -> dict[str, Any]:
    segments = {
        name: {"rows": each.rows, "mere": {recipe: number(score.mere) for recipe, score in each.scores.items()}}
        for name, each in known.segments.items()
    }
    return {
        "calls": known.calls,
        "lhs": _stats(known.lhs),
        "rhs": _stats(known.rhs),
        "real": {name: number(score.mere) for name, score in known.scores.items()},
        "drawn": {name: number(each.cautious.mere) for name, each in known.drawn.items()},
        "segments": segments,
    }


def _stats(stats: OperandStats) -> dict[str, Any]:
    counts = {name: getattr(stats, name) for name in ("rows", "values", "zero_rows", "non_finite", "fp16_overflows")}
    figures = ("mean", "std", "kurtosis", "amax", "least", "fp8_underflow", "dynamic_range")
    return {
        **counts,
        **{name: number(getattr(stats, name)) for name in figures},
        "quantiles": [[level, number(value)] for level, value in zip(QUANTILES, stats.quantiles, strict=True)],
        "model": stats.model,
        "fallback": stats.fallback,
    }
