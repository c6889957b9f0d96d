"""What a report holds, as plain data that JSON can write: schema.json describes it.

Texts that come again are stored once, in `strings`, and named by their number.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from loka_compile import compat
from loka_compile.inspect.compiled import CompiledGraph, graphs_of
from loka_compile.inspect.explain import explain_plan, explained
from loka_compile.inspect.records import rebuild
from loka_compile.probe.profile import Profile
from loka_compile.report import sites, stages, verdict
from loka_compile.report.graphs import Watched, snapshot
from loka_compile.report.kernels import Kernel, Node, assign, kernels_in
from loka_compile.report.texts import Texts, number
from loka_compile.spec.plan import Plan

FORMAT, VERSION = "loka-report", 1
MOST_CODE = 3_000_000
"""Characters of generated code that a report holds; of kernels beyond that the name alone."""


def new(kind: str, title: str, texts: Texts, **parts: Any) -> dict[str, Any]:
    """A report with these parts; the others are empty."""
    empty: dict[str, Any] = {"verdict": None, "sites": [], "graphs": [], "stages": [], "previews": [], "online": []}
    made = verdict.made_with() | {"when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    body = {"format": FORMAT, "version": VERSION, "kind": kind, "title": title, "made": made, **empty, **parts}
    return {**body, "strings": texts.all}


def of_compiled(compiled: Any, title: str = "") -> dict[str, Any]:
    """Raises ValueError where there is nothing to report: another backend, or nothing compiled yet."""
    graphs, texts = graphs_of(compiled), Texts()
    watched = [Watched(texts) for _ in graphs]
    pairs = enumerate(zip(graphs, watched, strict=True))
    records = [rebuild(graph, f"graph_{i}", each.look) for i, (graph, each) in pairs]
    told, plans = explained(graphs, records), [record.plan for record in records]
    found = sites.of_explanation(told, plans, records, _profile_of(graphs), texts)
    shown = [
        _graph(graph, record.name, record.training, each, texts)
        for graph, record, each in zip(graphs, records, watched, strict=True)
    ]
    return new(
        "compilation",
        title or type(compat.original_of(compiled)).__name__,
        texts,
        verdict={"cost": _cost(graphs)}
        | verdict.of_explanation(told, found, map(_raced, graphs, plans), graphs[0].stages.device, graphs[0].options),
        sites=found,
        graphs=shown,
        stages=stages.of_records(records, texts),
        online=[_online(f"graph_{i}", graph.told()) for i, graph in enumerate(graphs) if graph.told is not None],
    )


def of_plan(plan: Plan, title: str) -> dict[str, Any]:
    texts, told = Texts(), explain_plan(plan)
    found = sites.of_explanation(told, [plan], [], None, texts)
    said = verdict.of_explanation(told, found, [_there(plan.raced)]) | {"pins": dict(plan.pins)}
    return new("plan", title, texts, verdict=said, sites=found)


def of_profile(profile: Profile, title: str) -> dict[str, Any]:
    texts = Texts()
    found = sites.of_profile(profile, texts)
    notes = [f"seed {profile.seed}; made with " + ", ".join(f"{k} {v}" for k, v in profile.created_with.items())]
    said = {"target": "", "origin": "a profile: nothing is decided yet", "sites": len(found), "notes": notes}
    return new("profile", title, texts, verdict=said | {"warnings": []}, sites=found)


def _raced(graph: CompiledGraph, plan: Plan) -> str:
    """How the plan's race ended, and that it was run elsewhere if the plan was given."""
    return _there(plan.raced) if graph.stages.pinned else plan.raced


def _there(raced: str) -> str:
    return f"{raced}; that was where the plan was made" if raced else ""


def _cost(graphs: Sequence[CompiledGraph]) -> str:
    seconds = [graph.seconds for graph in graphs if graph.seconds]
    if not seconds:
        return ""
    plan = "" if all(graph.stages.pinned for graph in graphs) else "settle the plan and "
    return f"{sum(seconds):.1f} s to {plan}compile {len(seconds)} graph{'s' * (len(seconds) > 1)}"


def _profile_of(graphs: Sequence[CompiledGraph]) -> Profile | None:
    return next((g.options.profile for g in graphs if isinstance(g.options.profile, Profile)), None)


def _online(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    seen = {site: [[calls, number(mere)] for calls, mere in found] for site, found in told["seen"].items()}
    figures = {key: number(told[key]) for key in ("overhead", "budget", "max_mere")}
    return {"graph": name, **told, **figures, "seen": seen}


def _graph(graph: CompiledGraph, name: str, training: bool, watched: Watched, texts: Texts) -> dict[str, Any]:
    if graph.changes:
        watched.written = snapshot([("", graph.changes[0].before)], texts)
    snapshots, kernels = watched.result(), list[Kernel]()
    for artifact in graph.artifacts:
        phase = "backward" if (artifact.fx_kwargs or {}).get("is_backward") else "forward" if training else ""
        own, launches = kernels_in(artifact.source_code)
        _place(snapshots[-1], phase, own, launches, len(kernels), texts)
        kernels += own
    left = MOST_CODE
    shown = []
    for kernel in kernels:
        left -= len(kernel.code)
        shown.append([kernel.name, kernel.kind, kernel.calls, kernel.code if left > 0 else ""])
    return {"name": name, "training": training, "snapshots": snapshots, "kernels": shown}


def _place(
    after: dict[str, Any], phase: str, kernels: list[Kernel], launches: list[int], start: int, texts: Texts
) -> None:
    """Write into the snapshot which of these kernels compute its nodes of this phase."""
    strings = texts.all
    mine = [i for i, each in enumerate(after["phase"]) if strings[each] == phase]
    places = {node: place for place, node in enumerate(mine)}
    nodes = [
        Node(
            after["names"][i], _op(strings[after["target"][i]]), [places[j] for j in after["inputs"][i] if j in places]
        )
        for i in mine
    ]
    for i, found in zip(mine, assign(nodes, kernels, launches), strict=True):
        after["kernels"][i] = [place + start if place >= 0 else ~(~place + start) for place in found]


def _op(target: str) -> str:
    """`aten.add.Tensor` -> add; `loka.frozen_int_mm` -> frozen_int_mm."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 else parts[0]
