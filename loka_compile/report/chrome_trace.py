"""Chrome trace events, which Perfetto and chrome://tracing show: one step of a preview, kernel by kernel, each side a
track; or, of a compilation, its GEMMs one after the other, as the model has them and as they were chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loka_compile.report.compare import single
from loka_compile.report.errors import ReportError
from loka_compile.report.texts import finite

_LOWERED = ("lowered", "planned")


def as_json(reports: Sequence[Mapping[str, Any]]) -> str:
    """Raises ReportError where nothing has a time."""
    found = events(reports)
    if not found:
        named = ", ".join(report["title"] for report in reports)
        raise ReportError(f"no times in {named}: a trace shows a compilation, a plan or a preview that has some")
    body = {"displayTimeUnit": "ns", "traceEvents": found}
    return json.dumps(body, allow_nan=False) + "\n"


def events(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A process a report or preview, a thread a side; times in µs, modelled or of single calls, as the names say."""
    found: list[dict[str, Any]] = []
    process = 0
    for report in single(reports):
        tracks = [
            (f"{preview['model']} on {preview['target']}, modelled", list(_sides(preview)))
            for preview in report["previews"]
        ]
        gemms = list(_gemms(report))
        tracks += [(f"{report['title']}: GEMMs by single calls", gemms)] if any(slices for _, slices in gemms) else []
        for name, threads in tracks:
            process += 1
            found.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}})
            for thread, (title, slices) in enumerate(threads, 1):
                found.append({"ph": "M", "pid": process, "tid": thread, "name": "thread_name", "args": {"name": title}})
                found += [{"ph": "X", "pid": process, "tid": thread, **each} for each in slices]
    return found


def _sides(preview: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for side in preview["sides"]:
        strings, at, slices = side["strings"], 0.0, []
        for kernel in side["kernels"]:
            us = float(kernel["us"])
            args = {key: strings[kernel[key]] for key in ("op", "site", "operands", "bound") if strings[kernel[key]]}
            args |= {"flops": kernel["flops"], "bytes": kernel["bytes"]}
            slices.append({"name": strings[kernel["name"]], "cat": kernel["what"], "ts": at, "dur": us, "args": args})
            at += us
        yield side["name"], slices


def _gemms(report: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for title, after in (("as the model has them", False), ("as chosen", True)):
        at, slices = 0.0, []
        for site in report["sites"]:
            chosen = finite(site["time_after_us"]) if after and site["outcome"] in _LOWERED else None
            us = finite(site["time_before_us"]) if chosen is None else chosen
            if us is None or site["outcome"] == "absent":
                continue
            args = {key: site[key] for key in ("shape", "recipe", "provider", "runs_as", "outcome") if site[key]}
            slices.append({"name": site["key"], "cat": site["recipe"] or "gemm", "ts": at, "dur": us, "args": args})
            at += us
        yield title, slices
