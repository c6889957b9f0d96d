"""The passes' rewrites and refusals: those of a GEMM for its row, all others as notes below the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from loka_compile.inspect.compiled import CompiledGraph
from loka_compile.inspect.records import Record
from loka_compile.inspect.unseen import unseen
from loka_compile.passes.joint.precision import Precision
from loka_compile.spec.site import Site


def notes(graph: CompiledGraph, record: Record) -> Iterator[str]:
    yield from (f"{record.name}: {note}" for note in unseen(graph.module, record.opaque))
    for change in graph.changes:
        did: dict[str, list[str]] = {}
        for each in change.result.rewrites:
            did.setdefault(each.did, []).append(each.site)
        parts = [f"{what}: {', '.join(dict.fromkeys(sites))}" for what, sites in did.items()]
        parts += [f"{each.site} not: {each.reason}" for each in change.result.rejects if each.site]
        if change.adapts:
            yield f"{record.name}: {change.name} CHANGED THE MODEL: {'; '.join(parts) or 'nothing found'}"
        elif parts:
            yield f"{record.name}: {change.name}: {'; '.join(parts)}"
    yield from (f"{record.name}: {line}" for line in _left(record))
    if record.plan.raced:
        where = "raced where the plan was made" if graph.stages.pinned else "raced"
        yield f"{record.name}: {where}, {record.plan.raced}"
    yield from (f"{record.name}: {said}" for said in graph.said)


def statuses(graphs: Sequence[CompiledGraph], records: Sequence[Record]) -> Iterator[str]:
    """The online sessions' states: one line a session, with all of its graphs, as it counts their calls
    together."""
    sessions: dict[Callable[[], str], list[str]] = {}
    for graph, record in zip(graphs, records, strict=True):
        if graph.status is not None:
            sessions.setdefault(graph.status, []).append(record.name)
    for status, names in sessions.items():
        yield f"{', '.join(names)}{' together' if len(names) > 1 else ''}: {status()}"


def _left(record: Record) -> Iterator[str]:
    """By pass, the refusals that are about no GEMM of this graph. Those on the Dynamo graph stand with its changes."""
    keys = {site.key for site in record.sites}
    left: dict[str, dict[str, list[str]]] = {}
    for each in (reject for stage in record.stages if stage.graph != "dynamo" for reject in stage.rejects):
        if each.site and each.site not in keys:
            where = f"{each.site} ({each.node})" if each.node else each.site
            left.setdefault(each.pass_name, {}).setdefault(each.reason, []).append(where)
    for name, reasons in left.items():
        parts = [f"{', '.join(dict.fromkeys(places))} not: {reason}" for reason, places in reasons.items()]
        yield f"{name}: {'; '.join(parts)}"


def skipped(records: Iterable[Record]) -> Iterator[str]:
    """The passes that did not run at all, by the reason, once for all graphs."""
    skipped: dict[str, list[str]] = {}
    for each in (reject for record in records for stage in record.stages for reject in stage.rejects):
        if not each.site:
            skipped.setdefault(each.reason, []).append(each.pass_name)
    for reason, names in skipped.items():
        yield f"{', '.join(dict.fromkeys(names))}: {reason}"


def refusals_of(site: Site, record: Record) -> Iterator[str]:
    """Why passes left this GEMM alone. `precision` answers to the plan without its name; the others give theirs."""
    for each in (reject for stage in record.stages for reject in stage.rejects):
        if each.site == site.key:
            yield each.reason if each.pass_name == Precision.name else f"{each.pass_name}: {each.reason}"
