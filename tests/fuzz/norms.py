"""Norms, gates and activations: as modules, functions, methods, and by hand in the spellings people use."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.build import Builder, Unfit

ACTIVATIONS = (
    "F.relu({x})",
    "{x}.relu()",
    "torch.relu({x})",
    "{module}({x})",
    "F.relu({x}, inplace=True)",
    "F.gelu({x})",
    "F.silu({x})",
    "torch.sigmoid({x})",
    "{x}.sigmoid()",
    "torch.tanh({x})",
    "F.hardswish({x})",
    "F.leaky_relu({x})",
    "F.gelu({x}, approximate='tanh')",
    "F.silu({x}, inplace=True)",
    "F.relu({x}).square()",
    "{x}.relu_()",
    "F.relu6({x})",
    "F.elu({x})",
    "F.softplus({x})",
    "F.mish({x})",
    "F.hardtanh({x})",
    "{x}.tanh()",
    "F.leaky_relu({x}, 0.2)",
    "{x} * torch.sigmoid(1.702 * {x})",
    "torch.clamp({x}, min=0)",
    "F.selu({x}, inplace=True)",
    "{x}.clamp_min(0)",
    "F.hardswish({x}, True)",
    "torch.erf({x})",
    "F.logsigmoid({x})",
    "torch.maximum({x}, {x} * 0.1)",
)
MODULES = (
    "nn.ReLU()",
    "nn.GELU()",
    "nn.SiLU()",
    "nn.ReLU(inplace=True)",
    "nn.Sigmoid()",
    "nn.Hardswish()",
    "nn.SiLU(inplace=True)",
    "nn.Tanh()",
    "nn.LeakyReLU(inplace=True)",
    "nn.PReLU()",
)


def rows(t: Tensor) -> bool:
    """Rows of floats, long enough to be normalised."""
    return t.is_floating_point() and t.dim() >= 2 and t.shape[-1] >= 4


def typed(b: Builder, x: str) -> str:
    """`, dtype=...` for a module that reads x."""
    dtype = b.value(x).dtype
    return "" if dtype == torch.float32 else f", dtype={dtype}"


def activation(b: Builder) -> None:
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 1)
    activate(b, x)


def activate(b: Builder, x: str, few: bool = False) -> str:
    text = ACTIVATIONS[b.pick(6 if few else len(ACTIVATIONS))]
    if "{module}" in text:
        declared = MODULES[b.pick(len(MODULES))]
        if "PReLU" in declared:
            declared = f"nn.PReLU(dtype={b.value(x).dtype})"
        text = text.replace("{module}", b.declare(declared, "act", b.chance(50)))
    return b.let(text.format(x=x), "a")


def norm(b: Builder) -> None:
    """A norm of torch's own."""
    x = b.tensor(rows)
    n, more = b.value(x).shape[-1], typed(b, x)
    kind = b.pick(9)
    if kind == 0:
        b.let(f"{b.declare(f'nn.LayerNorm({n}{more})', 'norm', b.chance(40))}({x})", "n")
    elif kind == 1:
        eps = b.of("1e-5", "None", "1e-3")
        b.let(f"{b.declare(f'nn.RMSNorm({n}, {eps}{more})', 'norm', b.chance(40))}({x})", "n")
    elif kind == 2:
        b.let(
            b.of(
                f"F.layer_norm({x}, ({n},))",
                f"torch.layer_norm({x}, ({n},), eps=1e-3)",
                f"F.layer_norm({x}, {x}.shape[-1:])",
            ),
            "n",
        )
    elif kind == 3:
        weight = b.declare(f"nn.Parameter(torch.rand({n}{more}) + 0.5)", "gain")
        b.let(
            b.of(
                f"F.rms_norm({x}, ({n},), {weight}, 1e-6)",
                f"F.layer_norm({x}, ({n},), {weight}, None, 1e-5)",
                f"F.rms_norm({x}, ({n},), {weight})",
                f"torch.rms_norm({x}, ({n},), eps=1e-5) * {weight}",
            ),
            "n",
        )
    elif kind == 4:
        b.let(f"F.rms_norm({x}.unflatten(-1, (-1, {n // 2})), ({n // 2},)).flatten(-2)", "n")
    elif kind == 5:
        b.let(
            b.of(f"F.normalize({x}, dim=-1)", f"F.softmax({x}, dim=-1)", f"{x}.softmax(-1)", f"F.log_softmax({x}, -1)"),
            "n",
        )
    elif kind == 6 and b.value(x).dim() == 2:
        b.let(f"{b.declare(f'nn.BatchNorm1d({n}{more})', 'norm')}({x})", "n")
        b.features.add("buffers")
    elif kind == 7:
        affine = b.declare(f"nn.LayerNorm({n}, elementwise_affine=False{more})", "norm")
        b.let(f"{affine}({x}) + {x}", "n")
    else:
        b.let(f"F.layer_norm({x}.float(), ({n},)).to({x}.dtype)", "n")


def rms_by_hand(b: Builder) -> None:
    x = b.tensor(rows)
    n, dtype, source = b.value(x).shape[-1], b.value(x).dtype, x
    wide = dtype in (torch.bfloat16, torch.float16) and b.chance(60)
    if wide:
        x = b.let(b.of(f"{x}.float()", f"{x}.to(torch.float32)", f"{x}.type(torch.float32)"), "x")
    eps = b.of("1e-6", "1e-5", "1e-2", "0.1", "self.eps")
    if eps == "self.eps":
        b.module.eps = 1e-3
        b.init += [] if "self.eps = 1e-3" in b.init else ["self.eps = 1e-3"]
    style = b.pick(8)
    if style < 4:
        s = b.let(
            b.of(
                f"{x}.pow(2)", f"{x} * {x}", f"torch.square({x})", f"{x} ** 2", f"{x}.square()", f"torch.mul({x}, {x})"
            ),
            "s",
        )
        m = b.let(
            b.of(
                f"{s}.mean(-1, keepdim=True)",
                f"torch.mean({s}, dim=-1, keepdim=True)",
                f"{s}.mean((-1,), True)",
                f"{s}.sum(-1, keepdim=True) / {n}",
                f"{s}.mean(dim=-1, keepdim=True)",
            ),
            "m",
        )
        r = b.let(
            b.of(
                f"torch.rsqrt({m} + {eps})",
                f"({m} + {eps}).rsqrt()",
                f"({m} + {eps}) ** -0.5",
                f"1 / torch.sqrt({m} + {eps})",
                f"torch.rsqrt(torch.add({m}, {eps}))",
                f"(({m} + {eps}).sqrt()).reciprocal()",
            ),
            "r",
        )
        y = b.let(
            b.of(
                f"{x} * {r}",
                f"{r} * {x}",
                f"torch.mul({x}, {r})",
                f"{x}.mul({r})",
                f"{x}.mul_({r})",
                f"{x} / ({m} + {eps}).sqrt()",
            ),
            "n",
        )
    elif style == 4:
        y = b.let(f"{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + {eps})", "n")
    elif style == 5:
        d = b.let(f"torch.sqrt({x}.pow(2).mean(-1, keepdim=True) + {eps})", "d")
        y = b.let(b.of(f"{x} / {d}", f"torch.div({x}, {d})", f"{x}.div_({d})"), "n")
    elif style == 6:  # the write is part of the norm's own expression
        y = b.let(
            b.of(
                f"{x} * torch.rsqrt({x}.add_(1).pow(2).mean(-1, keepdim=True) + {eps})",
                f"{x}.mul_(2) * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + {eps})",
                f"torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + {eps}) * {x}.relu_()",
            ),
            "n",
        )
    else:
        r = b.let(f"torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + {eps})", "r")
        y = b.let(b.of(f"{x} * {r}", f"{r} * {x}"), "n")
    if wide:
        y = b.let(b.of(f"{y}.to({dtype})", f"{y}.type_as({source})", f"{y}.to({source}.dtype)"), "n")
    if b.chance(40):
        weight = b.declare(f"nn.Parameter(torch.rand({n}{typed(b, y)}) + 0.5)", "gain", b.chance(30))
        y = b.let(b.of(f"{y} * {weight}", f"{weight} * {y}"), "n")
    if b.chance(30):
        swish_of(b, y)


def layer_by_hand(b: Builder) -> None:
    x = b.tensor(rows)
    n, eps, style = b.value(x).shape[-1], b.of("1e-5", "1e-3", "1e-12"), b.pick(6)
    if style < 3:
        mu = b.let(b.of(f"{x}.mean(-1, keepdim=True)", f"torch.mean({x}, -1, keepdim=True)"), "mu")
        v = b.let(
            b.of(
                f"{x}.var(-1, keepdim=True, unbiased=False)",
                f"({x} - {mu}).pow(2).mean(-1, keepdim=True)",
                f"torch.var({x}, dim=-1, keepdim=True, correction=0)",
                f"({x} - {mu}).square().mean(-1, keepdim=True)",
                f"{x}.var(-1, keepdim=True)",
            ),
            "var",
        )
        y = b.let(
            b.of(
                f"({x} - {mu}) / torch.sqrt({v} + {eps})",
                f"({x} - {mu}) * torch.rsqrt({v} + {eps})",
                f"({x} - {mu}) * ({v} + {eps}) ** -0.5",
                f"({x} - {mu}).div(({v} + {eps}).sqrt())",
            ),
            "n",
        )
    elif style == 3:
        b.run(f"var, mean = torch.var_mean({x}, -1, unbiased=False, keepdim=True)")
        y = b.let(f"({x} - mean) / torch.sqrt(var + {eps})", "n")
    elif style == 4:
        c = b.let(f"{x} - {x}.mean(-1, keepdim=True)", "c")
        v = b.let(f"{c}.pow(2).mean(-1, keepdim=True)", "var")
        y = b.let(
            b.of(
                f"{c} * torch.rsqrt({v} + {eps})", f"{c} / ({v} + {eps}).sqrt()", f"{c}.mul_(torch.rsqrt({v} + {eps}))"
            ),
            "n",
        )
    else:
        y = b.let(f"({x} - {x}.mean(-1, keepdim=True)) / ({x}.std(-1, keepdim=True) + {eps})", "n")
    if b.chance(40):
        weight = b.declare(f"nn.Parameter(torch.rand({n}{typed(b, x)}) + 0.5)", "gain")
        y = b.let(f"{y} * {weight}", "n")
        if b.chance(60):
            b.let(f"{y} + {b.declare(f'nn.Parameter(torch.randn({n}{typed(b, x)}))', 'shift')}", "n")


def swish(b: Builder) -> None:
    swish_of(b, b.tensor(lambda t: t.is_floating_point() and t.dim() >= 1))


def swish_of(b: Builder, x: str) -> str:
    """The gate n * sigmoid(n), whole or in two lines."""
    style = b.pick(6)
    if style < 3:
        g = b.let(b.of(f"torch.sigmoid({x})", f"{x}.sigmoid()", f"F.sigmoid({x})", f"torch.special.expit({x})"), "g")
        return b.let(
            b.of(
                f"{x} * {g}", f"{g} * {x}", f"torch.mul({x}, {g})", f"{g}.mul_({x})", f"{x}.mul_({g})", f"{g}.mul({x})"
            ),
            "s",
        )
    if style == 3:
        return b.let(b.of(f"{x} * {x}.sigmoid()", f"{x} * torch.sigmoid({x})", f"torch.sigmoid({x}) * {x}"), "s")
    if style == 4:
        return b.let(
            b.of(f"{x} * {x}.add_(1).sigmoid()", f"{x}.mul_(2) * torch.sigmoid({x})", f"{x} * {x}.sigmoid_()"), "s"
        )
    gate = b.let(f"{x} / (1 + torch.exp(-{x}))", "s")
    if not torch.isfinite(b.value(gate)).all():
        raise Unfit
    return gate


STEPS = {
    "activation": (activation, 6),
    "norm": (norm, 6),
    "rms_by_hand": (rms_by_hand, 8),
    "layer_by_hand": (layer_by_hand, 5),
    "swish": (swish, 6),
}
