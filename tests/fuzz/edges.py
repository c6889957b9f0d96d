"""What stands at the edge of what a model does: sizes of one and none, vectors, numbers, state that is read and then
written."""

from __future__ import annotations

from tests.fuzz import norms
from tests.fuzz.build import Builder


def small(b: Builder) -> None:
    """A part of a tensor that has one row, column or position, or none, or a dimension less."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 2)
    b.features.add("small")
    part = b.of("[:1]", "[..., :1]", "[:, :1]", "[0]", "[..., 0]", "[:0]", "[..., :0]", "[:, :0]")
    y = b.let(f"{x}{part}", "e")
    product = f"{y} @ {y}.mT" if b.value(y).dim() >= 2 else f"{y} @ {y}"
    b.let(b.of(f"{y} * 2", f"torch.relu({y})", product, f"{y} + {y}.sum()"), "h")


def state(b: Builder) -> None:
    """A buffer that follows what passes it: read first, written behind its readers."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    b.features |= {"buffers", "writes"}
    mean = b.declare(f"torch.ones({n}{more})", "mean")
    b.let(
        b.of(
            f"{x} * ({mean} * 2).sin()",
            f"({x} - {mean}) * torch.rsqrt({mean} * {mean} + 1)",
            f"{x} * {mean}.exp()",
        ),
        "h",
    )
    with_mean = f"{x}.detach().flatten(0, -2).mean(0)"
    b.run(
        b.of(
            f"{mean}.mul_(0.9).add_({with_mean}, alpha=0.1)",
            f"{mean}.lerp_({with_mean}, 0.1)",
            f"{mean}.copy_({mean} + 1)",
            f"{mean}.data.add_(1)",
            f"{mean}[0] = 0",
        )
    )


STEPS = {"small": (small, 3), "state": (state, 3)}
