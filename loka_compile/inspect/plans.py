"""The plans that a compiled model runs: one a graph, and as one plan to save where the graphs agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loka_compile.inspect.records import Record, records
from loka_compile.spec.decision import KEPT, Decision
from loka_compile.spec.plan import Plan

NO_DECISION = "no plan decided about this site"


def plans(compiled: Any) -> dict[str, Plan]:
    """The plan of every compiled graph, by the name that `explain` gives the graph: `graph_0`, `graph_1` and so on."""
    return {record.name: _plan_of(record) for record in records(compiled)}


def plan(compiled: Any, graph: str | int | None = None) -> Plan:
    """The plan that a compiled model runs, to save and to pass back in.

    A model is compiled once for each batch size, for training and for inference, and for each part between graph
    breaks, and each of these graphs has a plan. Without `graph` the result holds the decisions of all of them.
    Raises ValueError where two graphs decide one GEMM differently: `graph` then says which plan is meant, by its name
    or its number.
    """
    known = records(compiled)
    if graph is not None:
        return _plan_of(_named(graph, known))
    if disputes := _disputes(known):
        raise ValueError(_not_one(known, disputes))
    return _together(known)


def _named(graph: str | int, known: Sequence[Record]) -> Record:
    wanted = f"graph_{graph}" if isinstance(graph, int) else graph
    for record in known:
        if record.name == wanted:
            return record
    raise ValueError("\n  ".join([f"graph: expected one of those below; got {graph!r}", *map(_said, known)]))


def _plan_of(record: Record) -> Plan:
    """A graph's plan, with the sites that it does not decide kept."""
    undecided = [site for site in record.sites if record.plan.find(site) is None]
    kept = {site.key: Decision(site, KEPT, NO_DECISION) for site in undecided}
    return replace(record.plan, decisions={**kept, **record.plan.decisions}) if kept else record.plan


# ---------------------------------------------------------------- several graphs

Disputes = Mapping[str, Mapping[str, str]]
"""By site, what each graph's plan chose, by the graph's name."""


def _disputes(known: Sequence[Record]) -> Disputes:
    """The GEMMs that two graphs decide differently. A choice by ranges of the batch is one choice."""
    seen: dict[str, list[tuple[str, Decision]]] = {}
    found: dict[str, dict[str, str]] = {}
    for record in known:
        for decision in filter(None, map(record.plan.find, record.sites)):
            others = seen.setdefault(decision.site.key, [])
            for name, other in others:
                if name != record.name and _same_gemm(other, decision) and _choice(other) != _choice(decision):
                    found.setdefault(decision.site.key, {name: _choice(other)})[record.name] = _choice(decision)
            others.append((record.name, decision))
    return found


def _choice(decision: Decision) -> str:
    by_rows = [f"{each.chosen} from {each.rows} rows on" for each in decision.ranges]
    return ", ".join(by_rows) or str(decision.chosen)


def _not_one(known: Sequence[Record], disputes: Disputes) -> str:
    """The error: which graphs there are, where they differ, and how to say which one is meant."""
    key, choices = next(iter(disputes.items()))
    differ = "; ".join(f"{choice} in {name}" for name, choice in choices.items())
    more = f", and at {len(disputes) - 1} more sites" if len(disputes) > 1 else ""
    lines = ["the graphs of this model run different plans, so there is no one plan to save:", *map(_said, known)]
    lines += [f"they differ at {key} ({differ}){more}"]
    lines += [f"say which: loka.plan(compiled, graph={known[0].name!r}). loka.plans(compiled) has all, by name"]
    return "\n  ".join(lines)


def _said(record: Record) -> str:
    """`graph_1 (inference of x (64, 13)): 5 of 7 sites lowered`"""
    lowered = sum(d is not None and d.lowered for d in map(record.plan.find, record.sites))
    kind = "training" if record.training else "inference"
    return f"{record.name} ({kind} of {record.inputs}): {lowered} of {len(record.sites)} sites lowered"


def _together(known: Sequence[Record]) -> Plan:
    """The decisions of all graphs. What a graph runs goes before what another graph's plan says of the same site."""
    base = next((record.plan for record in known if record.plan.decisions), known[0].plan)
    decisions: dict[str, Decision] = {}
    for record in known:
        decisions = {**record.plan.decisions, **decisions}
    taken: set[str] = set()
    for decision in (d for record in known for d in map(record.plan.find, record.sites) if d is not None):
        key = _place_of(decision, decisions)
        if key not in taken:  # of graphs that agree the first one's numbers
            decisions[key] = decision
            taken.add(key)
    for site in (site for record in known for site in record.sites if record.plan.find(site) is None):
        decisions.setdefault(site.key, Decision(site, KEPT, NO_DECISION))
    return replace(base, decisions=decisions, raced=_raced(known))


def _place_of(decision: Decision, decisions: Mapping[str, Decision]) -> str:
    """The key of a decision in a plan: `key@source`, where Plan.find looks too, if another GEMM has the key."""
    for key in (decision.site.key, f"{decision.site.key}@{decision.site.source}"):
        if key not in decisions or _same_gemm(decisions[key], decision):
            return key
    raise ValueError(
        f"more than two GEMMs are named {decision.site.key}, and a plan can tell two apart: save the plan of each "
        "graph, loka.plans(compiled)"
    )


def _same_gemm(one: Decision, other: Decision) -> bool:
    return one.site.source == other.site.source and one.site.same_gemm(other.site)


def _raced(known: Sequence[Record]) -> str:
    """How each graph's race ended."""
    raced = {record.name: record.plan.raced for record in known if record.plan.raced}
    if len(known) == 1:
        return "".join(raced.values())
    return "; ".join(f"{name}: {said}" for name, said in raced.items())
