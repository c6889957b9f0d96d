"""The passes of a report: in the order they ran, what each did, what it left, and the graph's code as a diff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loka_compile.inspect.records import Record
from loka_compile.report.texts import Texts

LONGEST = 1500
"""Lines of a diff that are shown."""


def of_records(records: Sequence[Record], texts: Texts) -> list[dict[str, Any]]:
    return [_stage(record.name, stage, texts) for record in records for stage in record.stages]


def _stage(graph: str, stage: Any, texts: Texts) -> dict[str, Any]:
    lines = stage.diff.splitlines() if stage.before != stage.after else []
    cut = [f"… {len(lines) - LONGEST} more lines"] if len(lines) > LONGEST else []
    return {
        "name": stage.name,
        "graph": graph,
        "kind": stage.graph,
        "rewrites": [[texts(each.site), texts(each.did), texts(each.kernel)] for each in stage.rewrites],
        "refusals": [[texts(each.site), texts(each.node), texts(each.reason)] for each in stage.rejects],
        "diff": "\n".join([*lines[:LONGEST], *cut]),
        "added": sum(line.startswith("+") and not line.startswith("+++") for line in lines),
        "removed": sum(line.startswith("-") and not line.startswith("---") for line in lines),
    }
