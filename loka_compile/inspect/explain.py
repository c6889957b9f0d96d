"""explain: every site of a compiled model, what was decided for it, and whether that is in the generated code.

It only reads: sites and kernels from the records, numbers and reasons from the plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from loka_compile.dispatch.steady import ON_A_BUSY_MACHINE
from loka_compile.inspect.compiled import CompiledGraph, graphs_of
from loka_compile.inspect.explanation import Explanation
from loka_compile.inspect.notes import notes, refusals_of, skipped, statuses
from loka_compile.inspect.records import Record, rebuild
from loka_compile.inspect.row import Outcome, Row
from loka_compile.kernels.providers import EMULATED, runner
from loka_compile.spec.decision import KEEP, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS


def explain(compiled: Any) -> Explanation:
    """Explain what `torch.compile(model, backend="loka")` returned, as far as it has been compiled.

    Raises ValueError where there is nothing to explain: another backend, or nothing compiled yet.
    """
    graphs = graphs_of(compiled)
    return explained(graphs, [rebuild(graph, f"graph_{index}") for index, graph in enumerate(graphs)])


def explained(graphs: list[CompiledGraph], records: list[Record]) -> Explanation:
    """The explanation of these graphs' records."""
    rows: list[Row] = []
    warnings: list[str] = []
    placed: set[Site] = set()
    for graph, record in zip(graphs, records, strict=True):
        decided = [(site, record.plan.find(site)) for site in record.sites]
        rows += [_row(site, decision, record) for site, decision in decided]
        placed |= {decision.site for _, decision in decided if decision is not None}
        warnings += _warnings(record, decided, graph.stages.device)
    plans = [record.plan for record in records]
    return Explanation(
        target=plans[0].target,
        origin=", ".join(dict.fromkeys(plan.origin for plan in plans if plan.origin)),
        rows=(*_merged(rows), *_absent(plans, placed, records)),
        graphs={record.name: "training" if record.training else "inference" for record in records},
        warnings=tuple(dict.fromkeys(warnings)),
        notes=(
            *(note for graph, record in zip(graphs, records, strict=True) for note in notes(graph, record)),
            *statuses(graphs, records),
            *_busy(rows),
            *skipped(records),
        ),
        inputs={record.name: record.inputs for record in records},
    )


def explain_plan(plan: Plan) -> Explanation:
    """The table of a plan, without a compiled model."""
    rows = (_planned(key, each, "planned" if each.lowered else "kept") for key, each in plan.decisions.items())
    return Explanation(plan.target, plan.origin, tuple(rows))


# ---------------------------------------------------------------- rows


def _row(site: Site, decision: Decision | None, record: Record) -> Row:
    kernel = record.kernels.get(site.key, "")
    rewritten = any(rewrite.site == site.key for stage in record.stages for rewrite in stage.rewrites)
    refusals = list(refusals_of(site, record))
    outcome: Outcome
    reason = ""
    if kernel in record.missing and site.key not in record.pending:
        outcome, reason = "missing", f"{kernel} was put in and is not in the generated code"
    elif site.key in record.pending:
        outcome, reason = "pending", "the backward is compiled when it first runs"
    elif kernel:
        outcome = "lowered"
    elif rewritten:
        outcome, reason = "gone", "rewritten, and then merged with an equal GEMM, unused, or left by `lower`"
    else:
        outcome = "refused" if decision is not None and decision.lowered else "kept"
        reason = "" if refusals else "no pass looked at it: `precision` is off"

    row = _bare(site.key, site) if decision is None else _planned(site.key, decision, outcome)
    reason = "; ".join(dict.fromkeys(filter(None, (reason, *refusals, row.reason))))
    runs_as = kernel if outcome == "lowered" else ""
    ranges = _ranges(decision, site) if decision is not None else ()
    row = replace(row, shape=site.shape, ranges=ranges, runs_as=runs_as, graphs=(record.name,))
    if decision is not None and row.time_before_us is not None:
        row = _timed(row, site, decision.site)
    if outcome in ("refused", "missing"):  # what was planned does not run, so its time is nobody's
        row = replace(row, time_after_us=None)
    return replace(row, reason=reason, outcome=outcome)


def _timed(row: Row, here: Site, timed: Site) -> Row:
    """The row of a site with times that hold for it. Those of another size are no times of this one; those of one size
    stand for a graph of any, and say so."""
    said = f"timed at {timed.shape}"
    if not _other_size(here, timed):
        return replace(row, timed_elsewhere=said) if _of_any_size(here) and not _of_any_size(timed) else row
    before, after = row.time_before_us or 0.0, row.time_after_us
    said += f": {before:,.1f} µs" + ("" if after is None or after == before else f" -> {after:,.1f} µs")
    return replace(row, time_before_us=None, time_after_us=None, timed_elsewhere=said)


def _planned(key: str, decision: Decision, outcome: Outcome) -> Row:
    """The plan's row for a site."""
    score, before = decision.score, decision.before
    known = decision.lowered and str(decision.chosen) in decision.scores
    return Row(
        key=key,
        role=decision.site.role,
        shape=decision.site.shape,
        recipe=decision.chosen.recipe,
        provider=decision.chosen.provider,
        runs_as="",
        outcome=outcome,
        mere=score.mere if known else None,
        sqnr_db=score.sqnr_db if known else None,
        median_rel=score.median_rel if known else None,
        time_before_us=before.time_us,
        time_after_us=score.time_us,
        time_source=score.time_source or before.time_source,
        reason=decision.reason,
        rejected=tuple((str(candidate), reason) for candidate, reason in decision.rejected),
        ranges=_ranges(decision, decision.site),
    )


def _ranges(decision: Decision, site: Site) -> tuple[str, ...]:
    """`s77 < 212: keep`: each choice with the rows it is for, named by the graph's symbol, or `rows` where the graph
    has a number."""
    rows, ends = decision.rows(site), [*(each.rows for each in decision.ranges[1:]), None]
    name = str(rows) if rows.free_symbols else "rows"
    texts = []
    for each, end in zip(decision.ranges, ends[: len(decision.ranges)], strict=True):
        if end is None:
            texts.append(f"{name} >= {each.rows}: {each.chosen}")
        else:
            texts.append(f"{f'{each.rows} <= ' if each.rows else ''}{name} < {end}: {each.chosen}")
    return tuple(texts)


def _bare(key: str, site: Site) -> Row:
    """A site the plan does not know."""
    return Row(key, site.role, site.shape, KEEP, "", "", "kept", None, None, None, None, None, "", "")


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Rows that differ in their graphs alone become one row. Rows of one site stand together."""
    merged: dict[Row, tuple[str, ...]] = {}
    for row in rows:
        alike = replace(row, graphs=())
        merged[alike] = (*merged.get(alike, ()), *row.graphs)
    place = {key: number for number, key in enumerate(dict.fromkeys(row.key for row in merged))}
    ordered = sorted(merged, key=lambda row: place[row.key])
    return [replace(row, graphs=merged[row]) for row in ordered]


def _absent(plans: list[Plan], placed: set[Site], records: list[Record]) -> list[Row]:
    """Rows for decisions that no graph uses: no graph has the site, or a graph has another GEMM of that name."""
    found = {site.key: site for record in records for site in record.sites}
    rows = {}
    for key, decision in ((key, decision) for plan in plans for key, decision in plan.decisions.items()):
        if decision.site in placed:
            continue
        other = found.get(decision.site.key)
        reason = "not in any graph compiled so far"
        if other is not None:
            dtype = str(other.dtype).removeprefix("torch.")
            reason = f"the graph has another GEMM of this name: {other.shape} in {dtype}"
        rows[key] = replace(_planned(key, decision, "absent"), reason=reason, rejected=())
    return list(rows.values())


# ---------------------------------------------------------------- warnings


def _warnings(record: Record, decided: list[tuple[Site, Decision | None]], device: str) -> list[str]:
    lowered = [(site, d) for site, d in decided if d is not None and d.lowered and site.key in record.kernels]
    target = TARGETS[record.plan.target]
    warnings = [_missing(record, kernel) for kernel in record.missing]
    warnings += _emulated(record, lowered, device)
    if target.device != device:
        warnings.append(f"the plan is for {target.name}, this is a {device}: the times are not of this machine")
    elsewhere = [(site, d.site) for site, d in lowered if d.score.time_us and _other_size(site, d.site)]
    if elsewhere:
        here, timed = elsewhere[0]
        warnings.append(
            f"{len(elsewhere)} sites of {record.name} run at other sizes than they were timed at, "
            f"such as {here.key}: {here.shape}, timed at {timed.shape}"
        )
    return warnings


def _busy(rows: Iterable[Row]) -> list[str]:
    """The sites whose times are not to be trusted."""
    keys = list(dict.fromkeys(row.key for row in rows if row.time_source == ON_A_BUSY_MACHINE))
    if not keys:
        return []
    return [
        f"the times of {len(keys)} sites were measured on a busy machine and may be too long: {', '.join(keys)}. They "
        "are not kept on disk, so a process that makes a plan measures them again"
    ]


def _missing(record: Record, kernel: str) -> str:
    keys = [key for key, planned in record.kernels.items() if planned == kernel and key not in record.pending]
    return (
        f"NOT LOWERED: the code generated for {record.name} calls {kernel} less often than planned, "
        f"so some of these run as something else: {', '.join(keys)}"
    )


def _emulated(record: Record, lowered: list[tuple[Site, Decision]], device: str) -> list[str]:
    """Warnings about sites that emulate a recipe: its kernel does not run here, or the plan chose emulation."""
    recipes: dict[str, list[str]] = {}
    for site, decision in lowered:
        recipe, planned = decision.chosen.recipe, decision.chosen.provider
        if runner(planned, site, RECIPES[recipe], TARGETS[record.plan.target], device) == EMULATED:
            why = "as planned" if planned == EMULATED else f"as {planned} cannot run them on this {device}"
            recipes.setdefault(why, []).append(recipe)
    return [
        f"EMULATED: {len(names)} sites of {record.name} compute the numerics of {', '.join(sorted(set(names)))} in "
        f"float32, {why}: the errors are real, the speed is not"
        for why, names in recipes.items()
    ]


def _of_any_size(site: Site) -> bool:
    return any(size.free_symbols for size in (site.batch, site.M, site.N, site.K))


def _other_size(here: Site, timed: Site) -> bool:
    pairs = ((here.batch, timed.batch), (here.M, timed.M), (here.N, timed.N), (here.K, timed.K))
    return any(a != b for a, b in pairs if a.is_number and b.is_number)
