"""Which model describes an operand, and whether it does: the self-check that falls back to real rows.

activation   a Gaussian over its features (gaussian.py), of low rank beyond a memory budget (low_rank.py)
weight       a matrix normal (matrix_normal.py)
gradient     scales and directions apart (gradient.py)
rows         real rows (rows.py), where what is drawn does not look like what was seen
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from loka_compile.probe.gaussian import learner
from loka_compile.probe.gradient import GradientLearner, GradientModel
from loka_compile.probe.low_rank import LowRank
from loka_compile.probe.matrix_normal import FlipFlop, MatrixNormal
from loka_compile.probe.rows import Rows
from loka_compile.spec.site import Site

Kind = Literal["activation", "weight", "gradient"]
MODELS: dict[str, Any] = {"gaussian": LowRank, "matrix_normal": MatrixNormal, "gradient": GradientModel, "rows": Rows}
"""Model classes by the name a profile calls them."""

CHECKED = 1024
"""Rows that are drawn to check a model."""
FACTOR = 2.0
"""Most that the largest drawn and the largest seen magnitude may differ by, either way."""
NEGATIVE = 0.01
"""Share of the amax by which a drawn value may lie below the lowest value seen."""


class Model(Protocol):
    """A learned distribution of rows: (count, F) float32."""

    @property
    def features(self) -> int: ...

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor: ...


def kind_of(site: Site, side: Literal["lhs", "rhs"]) -> Kind:
    """A right operand that is handed in as it is counts as a weight."""
    if site.gradient == side:
        return "gradient"
    handed_in = site.rhs.producer == "placeholder" and site.role != "grad_weight"
    return "weight" if side == "rhs" and (site.static_rhs or handed_in) else "activation"


def learn(kind: Kind, features: int, generator: torch.Generator) -> Any:
    """A learner: `add(rows)` with (n, F) finite rows, then `result()`."""
    if kind == "weight":
        return FlipFlop(features, generator)
    return GradientLearner(features) if kind == "gradient" else learner(features)


def name_of(model: Model) -> str:
    return next(name for name, kind in MODELS.items() if type(model) is kind)


def checked(model: Model, rows: Tensor, amax: float, least: float, generator: torch.Generator) -> tuple[Model, str]:
    """The model and "", or the stored real rows and why: what was drawn does not look like what was seen.

    rows: real ones, (n, F). amax: the largest magnitude seen. least: the smallest value seen.
    """
    drawn = model.draw(CHECKED, generator)
    most, lowest = drawn.abs().max().item(), drawn.min().item()
    if not drawn.isfinite().all():
        return Rows.of(rows), "what it draws is not finite"
    if least >= 0 and lowest < -NEGATIVE * amax:
        return Rows.of(rows), f"it draws {lowest:.3g}, and no value seen was negative"
    if not amax / FACTOR <= most <= amax * FACTOR:
        return Rows.of(rows), f"the largest of {CHECKED} rows drawn is {most:.3g}, the largest seen {amax:.3g}"
    return model, ""
