"""loka::triton_gemm: the product of two matrices in FP8 or 16 bits; scales, bias and activation are in the epilogue.

    out = activation((a * a_scale) @ (b * b_scale) + bias)

a: (M, K) or (B, M, K); b: (K, N) or (B, K, N). Both are FP8 (e5m2 or e4m3fn each), or both bfloat16, or both float16.
Scales: float32, as loka::quantize makes them, or None. One for all: (1,). One a row of a: (..., M, 1); one a column of
    b: (..., 1, N). One a block: (..., M, K / 128) with (..., K / 128, N / 128), rounded up.
bias: (N,) or None.
activation: one of loka::norm_quantize's.
out: (..., M, N) in `out_dtype`: bfloat16, float16 or float32.

Products are summed in float32 and rounded once. If the contraction is too long for the number of output tiles
(grad_weight contracts over the batch), it is split into parts. With `deterministic` a second kernel adds the parts in
order, so equal operands give equal bits. Otherwise they are added atomically, in any order, if out is float32 and has
neither bias nor activation.

Hopper's FP8 tensor cores add in about 14 bits, so contractions longer than PRECISE_K are added outside of them at every
step, as blocks are (DeepGEMM). FP8 tensor cores read both operands along K; FP8 operands that lie otherwise are copied.
Raises ValueError for other names, dtypes and shapes.
Source: LoKA's recipes (arXiv 2605.10886) at the field's shapes, scales as in torchao and DeepGEMM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.gemm.product import reference as product
from loka_compile.kernels.gemm.triton_gemm_launch import launches, prepared, scalings
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norms import ACTIVATIONS, FLOATS, FP8, HALVES, activate
from loka_compile.kernels.op import Op, T, declare

# ---------------------------------------------------------------- the specification


def reference(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """The specification; see the module's docstring."""
    check(a, a_scale, b, b_scale, bias, activation, out_dtype)
    p = product(a, a_scale, b, b_scale, torch.float32)
    return activate(p if bias is None else p + bias.float(), activation).to(out_dtype)


def check(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> None:
    op = "loka::triton_gemm"
    shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
    if a.dim() not in (2, 3) or a.dim() != b.dim() or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"{op}: a must be (M, K) and b (K, N), or batches of them, got {shapes}")
    if not (a.dtype in FP8 and b.dtype in FP8) and (a.dtype != b.dtype or a.dtype not in HALVES):
        raise ValueError(f"{op}: a and b must be both FP8 or of one 16-bit float dtype, got {a.dtype} and {b.dtype}")
    if out_dtype not in FLOATS:
        raise ValueError(f"{op}: out must be bfloat16, float16 or float32, got {out_dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if bias is not None and bias.shape != b.shape[-1:]:
        raise ValueError(f"{op}: bias must have shape ({b.shape[-1]},), got {tuple(bias.shape)}")
    if scalings(a, a_scale, b, b_scale) is None:
        got = [None if each is None else tuple(each.shape) for each in (a_scale, b_scale)]
        raise ValueError(
            f"{op}: scales must be one for all, one a row, or both of blocks for {shapes}, got {got[0]} and {got[1]}"
        )


# ---------------------------------------------------------------- the op


@dataclass(frozen=True)
class TritonGemm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "triton_gemm"
    a: T
    a_scale: T | None
    b: T
    b_scale: T | None
    bias: T | None
    activation: str
    out_dtype: torch.dtype
    deterministic: bool


def empty(call: TritonGemm[Tensor]) -> Tensor:
    check(*call.args[:-1])
    return call.a.new_empty((*call.a.shape[:-1], call.b.shape[-1]), dtype=call.out_dtype)


def run(call: TritonGemm[Tensor]) -> Tensor:
    if not call.a.is_cuda:
        return reference(*call.args[:-1])
    out = empty(call)
    a, b = prepared(call.a, call.b)
    bias = None if call.bias is None else call.bias.contiguous()
    made = launches(a, call.a_scale, b, call.b_scale, bias, out, call.activation, call.deterministic, arch_of(call.a))
    if made[0].constants["ATOMIC"]:
        out.zero_()
    for each in made:
        each.run()
    return out


triton_gemm = declare(TritonGemm, empty, run)
