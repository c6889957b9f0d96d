"""Graphs and node data for Model Explorer, in the format of its JSON files (ai-edge-model-explorer 0.1.34).

One file of graphs; beside it one file of numbers for each of these, to be loaded with "Add per-node data": the error of
each GEMM, its share of the GEMMs' time, and the bytes that each node writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loka_compile.report.compare import single
from loka_compile.report.errors import ReportError
from loka_compile.report.texts import finite

_PALE_TO_DARK = [{"stop": 0, "bgColor": "#eef4fa"}, {"stop": 1, "bgColor": "#0072b2"}]


def save(reports: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write graphs.json and a file of each kind of node data; returns what was written. Raises ReportError where there
    is no graph, which Model Explorer does not open."""
    if not any(True for _ in _snapshots(reports)):
        named = ", ".join(report["title"] for report in reports)
        raise ReportError(
            f"no graph in {named}: Model Explorer shows what was compiled, from a factory or a report of it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = {"graphs.json": graphs(reports)} | {f"{name}.json": data for name, data in node_data(reports).items()}
    written = []
    for name, body in files.items():
        (folder / name).write_text(json.dumps(body, allow_nan=False), encoding="utf-8")
        written.append(folder / name)
    return written


def graphs(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A collection with a graph for each snapshot."""
    label = ", ".join(report["title"] for report in reports)
    return {"label": label, "graphs": [_graph(*each) for each in _snapshots(reports)]}


def node_data(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind, the numbers of all graphs by their id."""
    found: dict[str, dict[str, Any]] = {"error": {}, "time": {}, "bytes": {}}
    for name, snapshot, report in _snapshots(reports):
        for kind, values in _values(report, snapshot).items():
            results = {node: {"value": value} for node, value in values.items()}
            found[kind][name] = {"results": results, "name": kind, "gradient": _PALE_TO_DARK}
    return found


def _snapshots(reports: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The id of a graph, its snapshot, its report."""
    all_of_them = single(reports)
    for place, report in enumerate(all_of_them):
        which = f"{'AB'[place]} " if len(all_of_them) > 1 else ""
        for graph in report["graphs"]:
            for snapshot in graph["snapshots"]:
                yield f"{which}{graph['name']} {snapshot['name']}", snapshot, report


def _graph(name: str, snapshot: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    strings, ids = report["strings"], _ids(snapshot)
    nodes = []
    for place, node in enumerate(ids):
        facts = {key: strings[snapshot[key][place]] for key in ("target", "type", "line", "site", "made", "phase")}
        edges = [
            {"sourceNodeId": ids[source], "sourceNodeOutputId": "0", "targetNodeInputId": str(slot)}
            for slot, source in enumerate(snapshot["inputs"][place])
        ]
        shape = {"id": "0", "attrs": [{"key": "tensor_shape", "value": facts["type"]}]}
        nodes.append(
            {
                "id": node,
                "label": facts["target"].removeprefix("aten."),
                "namespace": _namespace(strings[snapshot["module"][place]]),
                "attrs": [{"key": key, "value": value.replace("\t", ": ")} for key, value in facts.items() if value],
                "incomingEdges": edges,
                "outputsMetadata": [shape] if facts["type"] else [],
            }
        )
    return {"id": name, "nodes": nodes}


def _ids(snapshot: Mapping[str, Any]) -> list[str]:
    """Names, made unlike where forward and backward use one."""
    taken: dict[str, int] = {}
    ids = []
    for name in snapshot["names"]:
        taken[name] = taken.get(name, 0) + 1
        ids.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return ids


def _namespace(module: str) -> str:
    return "" if module in ("", "self") else module.replace("/", "∕").replace(".", "/")


def _values(report: Mapping[str, Any], snapshot: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers by node; of a site at its last node alone, so that sums over a module count it once."""
    strings, ids = report["strings"], _ids(snapshot)
    sites = {site["key"]: site for site in report["sites"]}
    last = {strings[site]: place for place, site in enumerate(snapshot["site"]) if strings[site]}
    after = snapshot["name"] == "after"
    error, time = {}, {}
    for key, place in last.items():
        site = sites.get(key)
        if site is None:
            continue
        lowered = site["outcome"] == "lowered"
        us = finite(site["time_after_us"] if after and lowered else site["time_before_us"])
        if us is not None:
            time[ids[place]] = us
        mere = finite(site["mere"])
        if after and lowered and mere is not None:
            error[ids[place]] = mere
    written = {ids[place]: float(size) for place, size in enumerate(snapshot["bytes"]) if size}
    return {"error": error, "time": time, "bytes": written}
