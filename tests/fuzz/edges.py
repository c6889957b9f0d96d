"""What stands at the edge of what a model does: sizes of one and none, vectors, numbers."""

from __future__ import annotations

from tests.fuzz.build import Builder
from tests.fuzz.writes import is_rows


def small(b: Builder) -> None:
    """A part of a tensor that has one row, column or position, or none, or a dimension less."""
    x = b.tensor(is_rows)
    b.features.add("small")
    part = b.of("[:1]", "[..., :1]", "[:, :1]", "[0]", "[..., 0]", "[:0]", "[..., :0]", "[:, :0]")
    y = b.let(f"{x}{part}", "e")
    product = f"{y} @ {y}.mT" if b.value(y).dim() >= 2 else f"{y} @ {y}"
    b.let(b.of(f"{y} * 2", f"torch.relu({y})", product, f"{y} + {y}.sum()"), "h")


STEPS = {"small": (small, 3)}
