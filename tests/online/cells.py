"""A cell of the matrix of ways of use: a story told eagerly, with Inductor and with loka, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.online.columns import COLUMNS
from tests.online.stories import Story, told

OUTPUTS, GRADIENTS = 0.05, 0.15
"""Relative RMS errors against eager that are within the budget, of one graph: of its outputs, and of the worst of its
gradients (`max_output_error`; `max_gradient_error` is 0.1 over all of them)."""
IN_A_ROW = {"five layers one by one": 5}
"""Graphs that a call runs one behind the other. Each has the budget for itself, given what the others hand it; their
errors are rounding errors of other operands, so they add in squares, and what five make is sqrt(5) times what one may.
Measured here: gradients of one layer are 0.073 off by its own graph, those of all five 0.165, sqrt(5) x 0.074. Outputs
are 0.004 off. A plan that is wrong for one of the layers is far beyond: the raw feature leaves it no signal at all."""

NOT_IN_EAGER = {("deepcopy", "FSDP2, 2 processes"): "AssertionError"}  # FSDP does not support deepcopy
"""Stories that eager PyTorch does not tell to their end, and the error: there is nothing to compare with."""
NOT_BY_INDUCTOR = {
    ("deepcopy", "compiled autograd"): "AssertionError",
    ("reset", "fail_on_recompile"): "RuntimeError",
}
"""Those that Inductor does not tell to their end: loka need not either, and may fail with the same error only."""
EAGER_BY_BOTH = {("reset", "eager_on_recompile")}
"""After a reset nothing is compiled any more under that stance, whatever the backend."""


@dataclass(frozen=True)
class Cell:
    """What a cell shows: in a word, how far loka's results are from eager's, what is wrong with it ("" if nothing)."""

    row: str
    column: str
    shows: str
    outputs: float = 0.0
    gradients: float = 0.0
    wrong: str = ""


def cell(row: str, column: str) -> Cell:
    """Tell the story three times, and compare."""
    eager = told(row, column, "eager")
    if eager.failed or (row, column) in NOT_IN_EAGER:
        return _failing(row, column, eager, NOT_IN_EAGER, "in eager")
    inductor, loka = told(row, column, "inductor"), told(row, column, "loka")
    if inductor.failed or (row, column) in NOT_BY_INDUCTOR:
        found = _failing(row, column, inductor, NOT_BY_INDUCTOR, "by Inductor")
        same = not loka.failed or _kind(loka) == _kind(inductor)
        return found if found.wrong or same else Cell(row, column, found.shows, wrong=f"by loka {loka.failed}")
    if loka.failed:
        return Cell(row, column, "crash", wrong=loka.failed)
    how, wrong, errors = COLUMNS[column], [], {}
    for name, bound in (("outputs", OUTPUTS), ("gradients", GRADIENTS)):
        errors[name], allowed = worst(loka.results, eager.results, name), bound * IN_A_ROW.get(row, 1) ** 0.5
        if not errors[name] <= allowed:
            wrong.append(f"{name} are {errors[name]:.3g} off, budget {allowed:.3g}")
    if loka.graphs != inductor.graphs or loka.left_to_python > inductor.left_to_python:
        counts = [f"{each.graphs} graphs, {each.left_to_python} frames left to Python" for each in (loka, inductor)]
        wrong.append(f"Dynamo made {counts[0]}; for Inductor {counts[1]}")
    if (row, column) in EAGER_BY_BOTH:
        shows = "eager by both"
        if inductor.compiled or not equal(loka.results[-how.calls :], eager.results[-how.calls :]):
            wrong.append("expected eager's own results at the end, by both")
    else:
        shows = f"{loka.lowered} of {loka.sites}" if loka.lowered else "Inductor"
        wrong += _not_as_expected(loka, how.left)
    if how.twice and not equal(told(row, column, "loka").results, loka.results):
        wrong.append("told twice, other numbers come out")
    return Cell(row, column, shows, **errors, wrong="; ".join(wrong))


def _failing(row: str, column: str, story: Story, known: dict[tuple[str, str], str], where: str) -> Cell:
    expected = known.get((row, column), "no error")
    wrong = "" if _kind(story) == expected else f"{where} {story.failed or 'no error'}, expected {expected}"
    return Cell(row, column, f"{_kind(story)} {where}", wrong=wrong)


def _kind(story: Story) -> str:
    return story.failed.partition(":")[0]


def _not_as_expected(loka: Story, left: str) -> list[str]:
    if left and (loka.lowered or left not in loka.origin):
        return [f"expected it left to Inductor ({left}), got {loka.lowered} lowered, {loka.origin}"]
    if not left and not loka.lowered:
        return [f"nothing of {loka.sites} sites is lowered: {loka.origin}"]
    return []


def worst(results: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], what: str) -> float:
    """The worst relative RMS error of all outputs, or of all gradients; infinite where one is not finite."""
    part = slice(0, 1) if what == "outputs" else slice(1, None)
    pairs = [p for a, b in zip(results, expected, strict=True) for p in zip(a[part], b[part], strict=True)]
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    return max((error if math.isfinite(error) else math.inf for error in errors), default=0.0)


def equal(results: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> bool:
    pairs = [p for a, b in zip(results, expected, strict=True) for p in zip(a, b, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)
