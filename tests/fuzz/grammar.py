"""The parts that programs are made of, and the program that a list of steps is."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.fuzz import blocks, edges, ends, families, memory, models, norms, regions, tables, writes
from tests.fuzz.build import Builder
from tests.fuzz.program import Program, Step


def linear(b: Builder) -> None:
    x = b.tensor(norms.rows)
    k, more = b.value(x).shape[-1], norms.typed(b, x)
    layer = b.declare(f"nn.Linear({k}, {b.of(k, 16, 32, 1)}{more})", "linear", b.chance(30))
    b.let(b.of(f"{layer}({x})", f"F.linear({x}, {layer}.weight, {layer}.bias)", f"{x} @ {layer}.weight.t()"), "y")


def several(b: Builder) -> None:
    """Linears of one input."""
    x = b.tensor(norms.rows)
    k, more = b.value(x).shape[-1], norms.typed(b, x)
    made = [b.let(f"{b.declare(f'nn.Linear({k}, {k}{more})', 'linear')}({x})", "y") for _ in range(2 + b.pick(3))]
    b.let(b.of(" + ".join(made), " * ".join(made), f"torch.cat([{', '.join(made)}], -1)"), "h")


def machine(b: Builder) -> None:
    """x (x^T y), or (x x^T) y."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 3)
    turned = b.let(b.of(f"{x}.mT", f"{x}.transpose(1, 2)", f"{x}.permute(0, 2, 1)"), "t")
    y = b.declare(f"nn.Parameter(torch.randn({b.value(x).shape[1]}, 3{norms.typed(b, x)}))", "y")
    if b.chance(50):
        inner = b.let(b.of(f"{turned} @ {y}", f"torch.matmul({turned}, {y})"), "p")
        b.let(f"{x} @ {inner}", "p")
    else:
        b.let(f"{b.let(f'{x} @ {turned}', 'p')} @ {y}", "p")


def repeated(b: Builder) -> None:
    """One user, many rows."""
    x = b.tensor(norms.rows)
    shape, more = b.value(x).shape, norms.typed(b, x)
    user = b.add_input("u", f"torch.randn(1, {b.width}{more})")
    wide = b.let(b.of(f"{user}.expand({x}.shape[0], -1)", f"{user}.repeat({x}.shape[0], 1)"), "w")
    b.let(f"{b.declare(f'nn.Linear({b.width}, {shape[-1]}{more})', 'linear')}({wide})", "y")


def residual(b: Builder) -> None:
    x = b.tensor(norms.rows)
    shape = b.value(x).shape
    y = b.tensor(lambda t: t.is_floating_point() and t.shape == shape and t is not b.value(x))
    b.let(b.of(f"{x} + {y}", f"{x} * {y}", f"torch.cat([{x}, {y}], -1)", f"{x} - {y}"), "h")


STEPS = {
    **norms.STEPS,
    **writes.STEPS,
    **blocks.STEPS,
    **tables.STEPS,
    **regions.STEPS,
    **models.STEPS,
    **memory.STEPS,
    **families.STEPS,
    **ends.STEPS,
    **edges.STEPS,
    "linear": (linear, 6),
    "several": (several, 3),
    "machine": (machine, 4),
    "repeated": (repeated, 3),
    "residual": (residual, 4),
}
KINDS = {name: weight for name, (_, weight) in STEPS.items()}


def build(program: Program) -> tuple[str, set[str]]:
    """(source, what is in it). A step behind which autograd refuses to differentiate goes: its writes first, then
    itself."""
    steps = list(program.steps)
    while True:
        b = _begun(program)
        with torch.set_grad_enabled(b.training):
            refused = next((at for at, step in enumerate(steps) if not _taken(b, step)), None)
            if refused is None:
                return b.source(b.result()), b.features
        plain = replace(steps[refused], writes=())
        steps[refused : refused + 1] = [plain] if steps[refused].writes else []


def _begun(program: Program) -> Builder:
    torch.manual_seed(0)
    b = Builder(program)
    b.writing = writes.write
    rows = f"batch, {b.tokens}, {b.width}" if program.head[7:8] > b"\x60" else f"batch, {b.width}"
    b.add_input("x", f"torch.randn({rows}, dtype={b.dtype})" + ".requires_grad_()" * b.training)
    with torch.set_grad_enabled(b.training):
        if b.training:  # a leaf takes no writes
            b.let("x1 * 1", "x")
    return b


def _taken(b: Builder, step: Step) -> bool:
    b.step(step, STEPS[step.kind][0])
    return b.differentiates()
