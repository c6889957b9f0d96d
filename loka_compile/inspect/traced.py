"""Artifacts for torch's trace, written while compiling under TORCH_TRACE: `tlparse` shows them by compile id."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from loka_compile import compat
from loka_compile.inspect.compiled import CompiledGraph
from loka_compile.inspect.explain import explained
from loka_compile.inspect.records import Record, rebuild


def trace(graph: CompiledGraph) -> None:
    """The plan, the record and the explanation of a graph that was just compiled, where torch traces. A backward that
    is compiled when it first runs is `pending` in them."""
    if not compat.is_tracing():
        return
    compat.trace_artifact("loka_plan", "json", graph.stages.plan.to_json())
    try:
        with compat.outside_compilation():
            record = rebuild(graph, "graph")
            said = str(explained([graph], [record]))
    except Exception as error:  # a trace is no reason to fail
        compat.trace_artifact("loka_record", "string", f"no record: {type(error).__name__}: {error}")
        return
    compat.trace_artifact("loka_record", "json", json.dumps(_plain(record), indent=1, default=str))
    compat.trace_artifact("loka_explain", "string", said)


def _plain(record: Record) -> dict[str, Any]:
    """Pass by pass what was done, refused and changed; the plan has an artifact of its own."""
    stages = [
        {
            "pass": stage.name,
            "graph": stage.graph,
            "rewrites": [asdict(each) for each in stage.rewrites],
            "rejects": [asdict(each) for each in stage.rejects],
            "diff": stage.diff.splitlines(),
        }
        for stage in record.stages
    ]
    kept = ("training", "kernels", "missing", "pending", "opaque")
    return {**{name: getattr(record, name) for name in kept}, "stages": stages}
