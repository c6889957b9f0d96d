"""loka::fm: Wukong's compressed factorization machine and the norm after it, in one kernel for up to 64 tokens.

    out = fm(x, y, norm="layer", weight=None, bias=None, eps=1e-5)

    o = x (x^T y)                                   pairwise products of the tokens, compressed to K columns
    out = (o - mean) * rstd * weight + bias         norm `layer`; o * rstd * weight + bias  `rms`; o  `none`

x: (B, N, D), tokens.
y: (B, N, K), or (N, K) for all samples. Statistics are taken over a sample's N * K values.
weight, bias: (N, K) or (N * K,), or None.
dtypes: bfloat16, float16, float32 (float64).
out: (B, N, K) in x's dtype; flattening it is a view.

It is computed as (x x^T) y if that takes fewer operations, as it does for few tokens. Sums and statistics are in
float32. The kernel rounds x x^T to the operands' dtype for the second product. It reads y twice if a sample's o does
not fit in registers. It refuses what it cannot do, or not do faster (`reasons_against`); then, and on a CPU, plain
operations run, which torch.compile sees and fuses. Gradients are formulas in plain operations.
Raises ValueError for other names, shapes and dtypes.
Source: Wukong (arXiv 2403.02545). Where fusing pays: KernelEvolve (arXiv 2512.23236, 5.3), 2-4x for N <= 64, nothing
beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels.fm.fm_kernel import launch
from loka_compile.kernels.launch import Specimen, arch_of, moved
from loka_compile.kernels.norms import HALVES, NORMS, affine, normalize
from loka_compile.kernels.op import Op, T, contiguous, declare

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MOST_TOKENS = 64
"""The kernel holds all tokens of a sample at once."""
MOST_WIDTH = 256
"""The most values of a token."""


def fm(
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The compressed factorization machine with its norm: (B, N, K) in x's dtype.

    x: (B, N, D), tokens; y: (B, N, K), or (N, K) for all samples; one float dtype.
    norm: "layer", "rms" or "none", over a sample's N * K values.
    weight, bias: (N, K) or (N * K,), or None.
    Raises ValueError for other names, shapes and dtypes.
    Formulas, kernel and source: the module's docstring.
    """
    weight, bias = (None if each is None else each.flatten() for each in (weight, bias))
    check(x, y, weight, bias, norm)
    fused = x.is_cuda and not reasons_against(x, y)
    return (_fm if fused else reference)(x, y, weight, bias, norm, eps)


def reasons_against(x: Tensor, y: Tensor) -> list[str]:
    """Why the kernel does not take these operands; [] if it does."""
    n, d = x.shape[-2:]
    reasons = []
    if x.dtype not in HALVES:
        reasons.append(f"the kernel multiplies bfloat16 and float16, not {x.dtype}")
    if n > MOST_TOKENS:
        reasons.append(f"{n} tokens: beyond {MOST_TOKENS} the products dominate and plain ones are as fast")
    if d > MOST_WIDTH:
        reasons.append(f"tokens of {d} values: the kernel holds at most {MOST_WIDTH}")
    return reasons


# ---------------------------------------------------------------- the specification


def reference(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, eps: float) -> Tensor:
    """The specification, differentiable. weight and bias: (N * K,) or None."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = interaction(x.to(wide), y.to(wide))
    flat, _ = normalize(out.flatten(1), norm, 0, eps)
    return affine(flat, weight, bias).unflatten(1, out.shape[1:]).to(x.dtype)


def interaction(x: Tensor, y: Tensor) -> Tensor:
    """x (x^T y) in the order that takes fewer operations; as written if the sizes are not known."""
    n, d, k = x.shape[-2], x.shape[-1], y.shape[-1]
    if compat.guard_free(n * (d + k) <= 2 * d * k):
        return (x @ x.mT) @ y
    return x @ (x.mT @ y)


def reference_backward(
    grad: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, norm: str, eps: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(dx, dy, dweight, dbias) in float32 or float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    left, right, grad = x.to(wide), y.to(wide), grad.to(wide).flatten(1)
    out = interaction(left, right)
    n, statistics = normalize(out.flatten(1), norm, 0, eps)
    of_bias, of_weight = grad.sum(0), None if weight is None else (grad * n).sum(0)
    grad = affine(grad, weight, None)
    if norm != "none":
        mean = grad.mean(-1, keepdim=True) if norm == "layer" else 0.0
        grad = statistics[..., -1:] * (grad - mean - n * (grad * n).mean(-1, keepdim=True))
    grad = grad.unflatten(1, out.shape[1:])
    dx = grad @ (right.mT @ left) + right @ (grad.mT @ left)
    dy = interaction(left, grad)
    return dx, dy if y.dim() == 3 else dy.sum(0), of_weight, of_bias


def check(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str) -> None:
    """Raises ValueError if names, shapes or dtypes do not fit together."""
    if norm not in NORMS:
        raise ValueError(f"loka::fm: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if x.dim() != 3 or x.dtype not in FLOATS or x.dtype != y.dtype:
        raise ValueError(
            f"loka::fm: x must be (B, N, D) in y's float dtype, got {x.dtype} {tuple(x.shape)} and {y.dtype}"
        )
    if y.dim() not in (2, 3) or y.shape[-2] != x.shape[1] or (y.dim() == 3 and y.shape[0] != x.shape[0]):
        raise ValueError(f"loka::fm: y must be (B, N, K) or (N, K) for x {tuple(x.shape)}, got {tuple(y.shape)}")
    size = y.shape[-2] * y.shape[-1]
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and each.numel() != size:
            raise ValueError(
                f"loka::fm: {name} must have one value for each of {size} outputs, got {tuple(each.shape)}"
            )


# ---------------------------------------------------------------- the op


@dataclass(frozen=True)
class Fm(Op[T, T]):
    """A call of loka::fm. weight, bias: (N * K,) or None."""

    name: ClassVar[str] = "fm"
    x: T
    y: T
    weight: T | None
    bias: T | None
    norm: str
    eps: float


def run(call: Fm[Tensor]) -> Tensor:
    x, y = call.x, call.y
    check(x, y, call.weight, call.bias, call.norm)
    if not x.is_cuda or reasons_against(x, y):
        return reference(*call.args).contiguous()
    out = x.new_empty((x.shape[0], *y.shape[-2:]))
    call = contiguous(call)
    launch(call.x, call.y, call.weight, call.bias, out, call.norm, call.eps, arch_of(x)).run()
    return out


def empty(call: Fm[Tensor]) -> Tensor:
    check(call.x, call.y, call.weight, call.bias, call.norm)
    return call.x.new_empty((call.x.shape[0], *call.y.shape[-2:]))


_fm = declare(Fm, empty, run, gradient="own")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call = Fm.bind(*inputs)
    ctx.norm, ctx.eps = call.norm, call.eps
    ctx.save_for_backward(call.x, call.y, call.weight, call.bias)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, weight, bias = ctx.saved_tensors
    made = reference_backward(grad, x, y, weight, ctx.norm, ctx.eps)
    pairs = zip((x, y, weight, bias), made, strict=True)
    return *(None if one is None or each is None else each.to(one.dtype) for one, each in pairs), None, None


torch.library.register_autograd("loka::fm", _gradients, setup_context=_save)


def specimens(arch: str) -> list[Specimen]:
    """At KernelEvolve's shapes and Wukong's own, against two batched products and the norm."""

    def specimen(b: int, n: int, d: int, k: int, norm: str, affine: bool = False) -> Specimen:
        x, y = (torch.empty(b, n, size, dtype=torch.bfloat16, device="meta") for size in (d, k))
        weight, bias = (torch.empty(n * k, device="meta") if affine else None for _ in range(2))
        made = launch(x, y, weight, bias, y, norm, 1e-5, arch)
        between = 2 * b * d * k
        product = 2 * b * n * d * k
        unfused = (
            ("bmm", product, moved(x, y) + between),
            ("bmm", product, moved(x, y) + between),
            ("norm", 0, moved(y, y, weight, bias)),
        )
        name = " ".join(["fm", norm, *["affine"] * affine, f"{b}x{n}x{d}x{k}"])
        # needs rows that begin at multiples of 16 bytes, and enough of a sample for 64 lanes
        wide = k % 8 == 0 and n * k >= 512
        return Specimen(name, made, unfused, ("mma", "wide_loads", "wide_stores") if wide else ("mma",))

    return [
        specimen(1024, 24, 224, 2198, "layer"),
        specimen(1024, 40, 224, 448, "layer", affine=True),
        specimen(1024, 48, 224, 448, "rms"),
        specimen(4096, 32, 128, 24, "layer", affine=True),
        specimen(4096, 16, 64, 16, "rms"),
        specimen(1024, 64, 160, 96, "layer"),
    ]
