"""What a report says first: how much faster, on what evidence, how exact, how much is lowered, and what is wrong."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from loka_compile.inspect.explanation import Explanation
from loka_compile.report.texts import finite, number
from loka_compile.spec.options import Options
from loka_compile.spec.processor import processor

_LIBRARIES = ("loka-compile", "torch", "triton", "torchao", "fbgemm-gpu-genai")


def made_with() -> dict[str, str]:
    """Versions and processor."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name.removesuffix("-compile")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"processor": str(processor())}


def of_explanation(
    explained: Explanation,
    sites: Sequence[Mapping[str, Any]],
    raced: Iterable[str],
    device: str = "",
    options: Options | None = None,
) -> dict[str, Any]:
    """sites: as the report has them. raced: how the graphs' plans did against the unplanned ones. device, options: what
    was compiled on, and with; of a plan alone nothing is known of them."""
    found = [site for site in sites if site["outcome"] != "absent"]
    lowered = [site for site in found if site["outcome"] in ("lowered", "planned")]
    timed = [site for site in found if finite(site["time_before_us"]) is not None]
    before = sum(site["time_before_us"] for site in timed)
    after = sum(_counted(site) for site in timed)
    worst = max((site for site in lowered if site["mere"] is not None), key=_error, default=None)
    return {
        "target": explained.target,
        "device": device,
        "origin": explained.origin,
        "graphs": explained.graphs,
        "inputs": explained.inputs,
        "budget": _budget(options) if options is not None else None,
        "raced": list(dict.fromkeys(filter(None, raced))),
        "gemm_before_us": number(float(before)) if timed else None,
        "gemm_after_us": number(float(after)) if timed else None,
        "gemm_timed": len(timed),
        "time_sources": list(dict.fromkeys(row.time_source for row in explained.rows if row.time_source)),
        "sites": len(found),
        "lowered": len(lowered),
        "missing": sum(site["outcome"] == "missing" for site in found),
        "worst_mere": worst["mere"] if worst is not None else None,
        "worst_site": worst["key"] if worst is not None else "",
        "warnings": list(explained.warnings),
        "notes": list(explained.notes),
    }


def _budget(options: Options) -> dict[str, Any]:
    allowed = options.error_budget
    figures = {"mere": allowed.max_mere, "sqnr_db": allowed.min_sqnr_db, "speedup": options.min_speedup}
    return {name: number(float(value)) for name, value in figures.items()}


def _counted(site: Mapping[str, Any]) -> float:
    """A site that was not lowered takes its old time, whatever was planned."""
    after = finite(site["time_after_us"]) if site["outcome"] in ("lowered", "planned") else None
    return float(site["time_before_us"] if after is None else after)


def _error(site: Mapping[str, Any]) -> float:
    """To find the worst: what is no number is worse than any."""
    found = finite(site["mere"])
    return float("inf") if found is None else found
