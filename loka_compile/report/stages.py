"""The passes of a report: in the order they ran, what each did, what it left, and the graph's code as a diff."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from loka_compile.inspect.records import Record
from loka_compile.passes import PIPELINE
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.adapt.mods import MODS
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.report.texts import Texts

LONGEST = 1500
"""Lines of a diff that are shown."""


@cache
def purposes() -> dict[str, str]:
    """What each pass is for, by its name: the first paragraph of its file."""
    files = {each.name: type(each).__module__ for stage in (*PIPELINE.stages, MODS.values()) for each in stage}
    files |= {each.name: each.__module__ for each in (Skip, WindowedAttention)}
    heads = {name: sys.modules[file].__doc__ or "" for name, file in files.items()}
    firsts = {name: " ".join(head.partition("\n\n")[0].split()) for name, head in heads.items()}
    return {name: first.removeprefix(f"{name}: ") for name, first in firsts.items()}


def of_records(records: Sequence[Record], texts: Texts) -> list[dict[str, Any]]:
    return [_stage(record.name, stage, texts) for record in records for stage in record.stages]


def _stage(graph: str, stage: Any, texts: Texts) -> dict[str, Any]:
    lines = stage.diff.splitlines() if stage.before != stage.after else []
    cut = [f"… {len(lines) - LONGEST} more lines"] if len(lines) > LONGEST else []
    return {
        "name": stage.name,
        "graph": graph,
        "kind": stage.graph,
        "what": texts(purposes().get(stage.name, "")),
        "rewrites": [[texts(each.site), texts(each.did), texts(each.kernel)] for each in stage.rewrites],
        "refusals": [[texts(each.site), texts(each.node), texts(each.reason)] for each in stage.rejects],
        "diff": "\n".join([*lines[:LONGEST], *cut]),
        "added": sum(line.startswith("+") and not line.startswith("+++") for line in lines),
        "removed": sum(line.startswith("-") and not line.startswith("---") for line in lines),
    }
