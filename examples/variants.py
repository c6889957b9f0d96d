"""What bench_dispatch.py finds out of each way to run a model, and how it is shown and judged."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Tensor

import loka_compile as loka

BUDGET = loka.Options()  # loka's default budgets
TIE = 0.98  # "at least as fast" is a median ratio of at least this; compare "loka, again", which is loka itself
MIN_SPEEDUP = 2.0  # what it must show: loka over Inductor, geometric mean of the models


@dataclass
class Variant:
    """One way to run a model, and what came of it.

    chosen: sites by what they run in. over_budget: sites whose recipe misses the site budgets. error: relative RMS of
    the outputs against eager float64. ratios are medians over the rounds. skipped: why it did not race. note: what has
    to be known of its time.
    """

    kind: str
    call: Callable[..., Tensor] = field(repr=False)
    chosen: dict[str, int] = field(default_factory=dict)
    over_budget: int = 0
    error: float | None = None
    ms: float | None = None
    over_inductor: float | None = None
    loka_over_it: float | None = None
    skipped: str = ""
    note: str = ""

    @property
    def within_budget(self) -> bool:
        return self.error is not None and self.error <= BUDGET.max_output_error and not self.over_budget

    def to_json(self) -> dict[str, object]:
        body = {name: value for name, value in vars(self).items() if name != "call"}
        return body | {"within_budget": self.within_budget}


def count_sites(variant: Variant, plan: loka.Plan) -> None:
    """What the sites run in, and how many of them miss the budgets a site has."""
    variant.chosen = dict(Counter(str(decision.chosen) for decision in plan.decisions.values()))
    scores = [decision.score for decision in plan.lowered]
    variant.over_budget = sum(s.mere > BUDGET.max_mere or s.sqnr_db < BUDGET.min_sqnr_db for s in scores)


def relative_rms(out: Tensor, reference: Tensor) -> float:
    difference = out.double() - reference.double()
    return float(difference.square().mean().sqrt() / reference.double().square().mean().sqrt())


def criteria(results: dict[str, object]) -> dict[str, bool | None]:
    """What it must show, by sentence; None where there was nothing to compare with."""
    models = results["models"].items()
    judged: dict[str, bool | None] = {
        f"geometric mean over Inductor at least {MIN_SPEEDUP:g}x": results["loka_over_inductor_geometric_mean"]
        >= MIN_SPEEDUP
    }
    for name, variants in models:
        raced = [v for v in variants.values() if v["ms"] is not None]
        rivals = [v for v in raced if v["kind"] == "uniform" and v["within_budget"]]
        judged[f"{name}: at least as fast as every uniform recipe within budget"] = (
            all(v["loka_over_it"] >= TIE for v in rivals) if rivals else None
        )
        ours, others = variants["loka"], [v for v in raced if v["kind"] == "engine"]
        judged[f"{name}: at least as fast as every other engine that is not closer to float64"] = (
            all(v["loka_over_it"] >= TIE for v in others if v["error"] >= ours["error"]) if others else None
        )
    return judged


def table(name: str, variants: dict[str, Variant], options: argparse.Namespace) -> Table:
    """All variants of one model."""
    title = f"{name}: batch {options.batch}, {options.rounds} rounds, {torch.get_num_threads()} threads"
    caption = (
        "ms: median of one call, measured on this CPU; ratios: medians of the rounds' ratios.\n"
        "error: relative RMS of the outputs against eager float64, on ratings the model has not seen.\n"
        f"within budget: that error at most {BUDGET.max_output_error:g}, and at every lowered site "
        f"MERE <= {BUDGET.max_mere:g}, SQNR >= {BUDGET.min_sqnr_db:g} dB"
    )
    result = Table(title=title, caption=caption, caption_justify="left")
    for column in ("variant", "sites", "error", "within budget", "ms", "over Inductor", "loka over it", "note"):
        result.add_column(column, justify="left" if column in ("variant", "within budget", "note") else "right")
    for label, v in variants.items():
        lowered = sum(n for chosen, n in v.chosen.items() if chosen != "keep")
        sites = f"{lowered} of {sum(v.chosen.values())}" if v.chosen else "–"
        error = "–" if v.error is None else f"{v.error:.2e}"
        within = "–" if v.error is None else "yes" if v.within_budget else f"NO ({v.over_budget} sites over)"
        figures = ["–"] * 3
        if v.ms is not None:
            figures = [f"{v.ms:.1f}", f"{v.over_inductor:.2f}x", f"{v.loka_over_it:.2f}x"]
        style = "bold" if label == "loka" else "dim" if v.skipped else None
        result.add_row(label, sites, error, within, *figures, v.skipped or v.note, style=style)
    return result


def verdict(results: dict[str, object]) -> Table:
    """The geometric mean, and the criteria with a mark each."""
    mean = results["loka_over_inductor_geometric_mean"]
    result = Table(
        title=f"loka over Inductor float32, measured here: {mean:.2f}x, geometric mean over {len(results['models'])}",
        caption=f'"at least as fast": a median ratio of at least {TIE:g}; "loka, again" shows what chance alone does',
    )
    result.add_column("what it must show")
    result.add_column("")
    marks = {True: "[green]✓ pass[/]", False: "[red]✗ FAIL[/]", None: "nothing to compare"}
    for sentence, passed in results["criteria"].items():
        result.add_row(sentence, marks[passed])
    return result
