"""What changes how lines run: autocast, no_grad, checkpoints, graph breaks, random numbers, control flow."""

from __future__ import annotations

from tests.fuzz import norms
from tests.fuzz.build import Builder


def _some(b: Builder, x: str) -> str:
    """A few lines as they could stand anywhere."""
    more = norms.typed(b, x)
    n = b.value(x).shape[-1]
    style = b.pick(5)
    if style == 0:
        return b.let(f"{b.declare(f'nn.Linear({n}, {n}{more})', 'linear')}({x})", "y")
    if style == 1:
        gate = b.let(f"torch.sigmoid({x})", "g")
        return b.let(f"{x} * {gate}", "s")
    if style == 2:
        return b.let(f"{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-6)", "n")
    if style == 3:
        y = b.let(f"{b.declare(f'nn.Linear({n}, 16{more})', 'linear')}({x})", "y")
        return b.let(f"F.relu(F.layer_norm({y}, (16,)))", "n")
    made = [b.let(f"{b.declare(f'nn.Linear({n}, 16{more})', 'linear')}({x})", "y") for _ in range(2)]
    return b.let(f"{made[0]} * {made[1]}")


def autocast(b: Builder) -> None:
    x = b.tensor(norms.rows)
    half = b.of("torch.bfloat16", "torch.float16")
    enabled = b.of("", ", enabled=False") if b.chance(15) else ""
    b.features.add("autocast")
    with b.under(f"torch.autocast('cpu', dtype={half}{enabled})"):
        y = _some(b, x)
        if b.chance(40):
            _some(b, y)


def no_grad(b: Builder) -> None:
    x = b.tensor(norms.rows)
    b.features.add("no_grad")
    with b.under(b.of("torch.no_grad()", "torch.set_grad_enabled(False)", "torch.no_grad()")):
        y = _some(b, x)
    b.let(b.of(f"{x}[..., :1] + {y}", f"{x}[..., :1] * {y}"))


def checkpointed(b: Builder) -> None:
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    layer = b.declare(f"nn.Linear({n}, {n}{more})", "linear")
    b.features.add("checkpoint")
    body = b.of(
        layer,
        f"lambda t: F.relu({layer}(t))",
        f"lambda t: t * torch.sigmoid({layer}(t))",
        f"lambda t: F.layer_norm({layer}(t), ({n},))",
        "lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6)",
        f"lambda t: {layer}(t) + {layer}({layer}(t))",
    )
    b.let(f"checkpoint({body}, {x}, use_reentrant=False)", "k")


def broken(b: Builder) -> None:
    """A graph break."""
    b.features.add("breaks")
    x = b.tensor(lambda t: t.is_floating_point())
    b.run(b.of("torch._dynamo.graph_break()", f"print(end=str({x}.shape)[:0])", "torch._dynamo.graph_break()"))


def random(b: Builder) -> None:
    x = b.tensor(norms.rows)
    b.features.add("random")
    drop = b.declare(f"nn.Dropout({b.of(0.5, 0.1)})", "drop", b.chance(50))
    b.let(
        b.of(
            f"{drop}({x})",
            f"F.dropout({x}, 0.3, self.training)",
            f"F.dropout({x}, 0.5, True)",
            f"{x} + 0.1 * torch.randn_like({x})",
            f"{x} * torch.rand({x}.shape[0], 1, dtype={x}.dtype)",
            f"{drop}(F.relu({x}))",
        ),
        "d",
    )


def branch(b: Builder) -> None:
    """A choice by a size, or by the data."""
    x = b.tensor(norms.rows)
    y = b.let(f"{x} * 2")
    test = b.of(f"{x}.shape[0] > 4", "self.training", f"{x}.dim() == 2")
    b.run(f"if {test}: {y} = {y}.relu()")
    b.unread += [] if y in b.unread else [y]


REVERSED = """\
class {name}(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return {forward}

    @staticmethod
    def backward(ctx, grad):
        return {backward}, None
"""


def gradients(b: Builder) -> None:
    """What has another gradient than its value says: straight through a rounding, reversed, scaled by a hook."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    b.features.add("own gradients")
    style = b.pick(4)
    if style == 0:
        y = b.let(
            b.of(
                f"{x} + ({x}.round() - {x}).detach()",
                f"{x} + ({x}.sign() - {x}).detach()",
                f"{x}.detach() + 0.5 * ({x} - {x}.detach())",
            ),
            "g",
        )
    elif style == 1:
        name = b.fresh("Reverse")
        b.define(
            REVERSED.format(
                name=name,
                forward=b.of("x.view_as(x)", "x * 1", "x.clone()"),
                backward=b.of("-ctx.factor * grad", "grad.neg() * ctx.factor", "grad * 0.1"),
            )
        )
        y = b.let(f"{name}.apply({x}, {b.of(1.0, 0.5)})", "g")
    elif style == 2:
        y = b.let(f"{b.declare(f'nn.Linear({n}, {n}{more})', 'linear')}({x})", "y")
        if b.training and b.value(y).requires_grad:
            b.run(f"{y}.register_hook(lambda grad: grad * {b.of(0.5, -1.0)})")
    else:
        y = b.let(f"{b.declare(f'nn.Linear({n}, {n}{more})', 'linear')}({x}.detach()) + {x}", "y")
    b.let(
        b.of(
            f"{b.declare(f'nn.Linear({n}, 8{more})', 'linear')}({y})",
            f"{y} * torch.sigmoid({y})",
            f"F.layer_norm({y}, ({n},)) + {x}",
            f"F.relu({y})",
        ),
        "h",
    )


STEPS = {
    "autocast": (autocast, 3),
    "no_grad": (no_grad, 2),
    "checkpointed": (checkpointed, 2),
    "broken": (broken, 2),
    "random": (random, 2),
    "branch": (branch, 1),
    "gradients": (gradients, 3),
}
