"""loka::gemm_norm: a linear, the norm of its output, an activation and a quantization, in the GEMM's epilogue.

    out, scale, statistics, product = gemm_norm(a, a_scale, b, b_scale, *epilogue)

    p = (a * a_scale) @ (b * b_scale)^T + bias + residual
    out ~ activation(norm(p) * weight + shift) / scale          as loka::norm_quantize does from p on

a: (M, K); b: (N, K), a linear's weight; both FP8, or both in one wider float dtype.
a_scale: (M, 1) float32, greater than 0, or None; b_scale: (N, 1) or (1,) float32, or None.
The epilogue and the results: see epilogue.py.

Sums are in float32, and p is not rounded before out is. A kernel's tile spans 512 columns. A norm or a scale over a
longer row takes two kernels, with p between them in bfloat16 (for FP8 operands) or in a's dtype.

If out is FP8, the kernel is less exact in two cases. After `rms` or `layer` a weight or shift of 1e37 or more counts as
not finite, and its column becomes NaN. Without `save` the variance of `layer` comes from sums of one pass: to 1 % if a
mean is 100 deviations from zero.

The reference runs on CPUs, for float32 and float64 operands, and on GPUs that the kernel is not tuned for.
Raises ValueError for other names, dtypes and shapes.
Source: LoKA BlockNorm (arXiv 2605.10886), multi-CTA norm and lazy norm of the fused normalization blog.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.gemm_norm.epilogue import (
    WIDE,
    Fused,
    GemmNorm,
    behind,
    check_epilogue,
    empty_outputs,
    product_dtype,
)
from loka_compile.kernels.gemm_norm.gemm_norm_launch import compiles_for, launches
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.op import contiguous, declare, dense

# ---------------------------------------------------------------- the specification


def reference(call: GemmNorm[Tensor]) -> Fused[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    a, a_scale, b, b_scale = call.a, call.a_scale, call.b, call.b_scale
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    left, right = a.to(wide), b.to(wide)
    left = left if a_scale is None else left * a_scale
    right = right if b_scale is None else right * b_scale
    return behind(left @ right.t(), product_dtype(a), call.epilogue)


def composed(call: GemmNorm[Tensor]) -> Fused[Tensor]:
    """The reference as a CPU runs it fast: 16-bit operands by torch's own product, which rounds p to 16 bits, then
    plain operations for Inductor to fuse."""
    a, a_scale, b_scale = call.a, call.a_scale, call.b_scale
    if a.dtype not in norms.HALVES:
        return reference(call)
    check(call)
    p = (a @ call.b.t()).float()
    p = p if a_scale is None else p * a_scale
    return behind(p if b_scale is None else p * b_scale.reshape(-1), product_dtype(a), call.epilogue)


def check(call: GemmNorm[Tensor]) -> None:
    op, a, b = f"loka::{call.name}", call.a, call.b
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{op}: a must be (M, K) and b (N, K), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype not in (*FP8, *WIDE) or (a.dtype != b.dtype and a.dtype not in FP8):
        raise ValueError(f"{op}: a and b must be both FP8 or of one wider float dtype, got {a.dtype} and {b.dtype}")
    if (a.dtype in FP8) != (b.dtype in FP8) or not b.shape[0] or not b.shape[1]:
        got = f"got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise ValueError(f"{op}: a and b must be both FP8 or both wide, with N and K above 0; {got}")
    m, n = a.shape[0], b.shape[0]
    for name, scale, shapes in (("a_scale", call.a_scale, [(m, 1)]), ("b_scale", call.b_scale, [(n, 1), (1,)])):
        if scale is not None and tuple(scale.shape) not in shapes:
            raise ValueError(f"{op}: {name} must have a shape of {shapes}, got {tuple(scale.shape)}")
    check_epilogue(op, m, n, call.epilogue)


# ---------------------------------------------------------------- the op


def run(call: GemmNorm[Tensor]) -> Fused[Tensor]:
    if not call.a.is_cuda or not compiles_for(call.a, call.b, arch_of(call.a)):
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    for each in launches(contiguous(call), outputs, arch_of(call.a)):
        each.run()
    return outputs


gemm_norm = declare(GemmNorm, dense(reference), run)
