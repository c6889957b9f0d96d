"""The launches of loka::gemm_norm: which kernels run for given operands, and with which constants."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels import norms, ptx
from loka_compile.kernels.gemm_norm.epilogue import (
    LAZY,
    Fused,
    GemmNorm,
    empty_product,
    of_rows,
)
from loka_compile.kernels.gemm_norm.gemm_norm_kernel import gemm_norm_kernel
from loka_compile.kernels.gemm_norm.gemm_norm_tiles import configuration, needs_two, tile_columns
from loka_compile.kernels.launch import Launch, moved
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.quantize.quantize import AMAX_FLOOR
from loka_compile.spec.chips import CHIPS


def compiles_for(a: Tensor, b: Tensor, arch: str) -> bool:
    """Whether the kernel takes these operands on this chip."""
    return arch in CHIPS and a.dtype not in (torch.float32, torch.float64) and b.shape[0] <= norms.LONGEST_ROW


def launches(call: GemmNorm[Tensor], outputs: Fused[Tensor], arch: str) -> list[Launch]:
    """The fused kernel; or, if a tile cannot hold what must be seen at once, the product and then norm_quantize's
    kernel."""
    epilogue, (out, scale, statistics, product) = call.epilogue, outputs
    if not needs_two(call.b.shape[0], epilogue.row.norm, epilogue.row.block, scale.numel() > 0):
        return [launch(call, outputs, arch)]
    product = product if product.numel() else empty_product(call)
    nothing = product.new_empty(0, dtype=torch.float32)
    row = replace(epilogue.row, norm="none", block=0, activation="none")
    plain = replace(epilogue, weight=None, shift=None, given=None, row=row)
    first = launch(replace(call, epilogue=plain), Fused(product, nothing, nothing, nothing), arch)
    return [first, norm_quantize.launch(of_rows(product, epilogue), norm_quantize.Normed(out, scale, statistics), arch)]


def launch(call: GemmNorm[Tensor], outputs: Fused[Tensor], arch: str) -> Launch:
    """The fused kernel for contiguous operands and outputs, where one tile holds what must be seen at once."""
    a, a_scale, b, b_scale, epilogue = call.a, call.a_scale, call.b, call.b_scale, call.epilogue
    bias, residual, row = epilogue.bias, epilogue.residual, epilogue.row
    norm, block = row.norm, row.block
    out, scale, statistics, product = outputs
    (m, k), n = a.shape, b.shape[0]
    normed = norm in ("rms", "layer")
    length = LAZY if norm == "lazy" else (block or n) if normed else n
    bl, bb, step = tile_columns(n, length, whole=scale.numel() > 0 or (normed and length == n), normed=norm != "none")
    tiles = triton.cdiv(n, step)
    kept = product if product.numel() else None
    pressure = 0
    added = bias, residual, epilogue.weight, epilogue.shift, kept
    if norm == "layer" or row.activation not in ("none", "relu") or any(each is not None for each in added):
        pressure = 2 if norm == "layer" and not bias is kept is None else 1
    bm, bk, warps, stages, swap = configuration(m, bb * bl, tiles, a.element_size(), pressure, arch)
    at_16 = k * a.element_size() % 16 == 0 and not (a.data_ptr() % 16 or b.data_ptr() % 16)
    tma = arch in ("sm_90", "sm_100", "sm_120") and at_16 and m > 0
    whole = step == bb * bl or tiles == 1
    tma_out = tma and n * out.element_size() % 16 == 0 and whole
    tma_residual = tma and whole and residual is not None and n * residual.element_size() % 16 == 0
    turn = arch == "sm_90" and tma and not swap and bb * bl >= 64 and n % 64 == 0
    described = TensorDescriptor.from_tensor
    args = {
        "a": described(a, [bm, bk]) if tma else a,
        "b": turned(b, bb * bl, bk) if turn else described(b, [bb * bl, bk]) if tma else b,
        "a_scale": a_scale,
        "b_scale": b_scale,
        "bias": bias,
        "residual": described(residual, [bm, bb * bl]) if tma_residual else residual,
        "weight": epilogue.weight,
        "shift": epilogue.shift,
        "given": epilogue.given,
        "out": described(out, [bm, bb * bl]) if tma_out else out,
        "scale": scale if scale.numel() else None,
        "statistics": statistics if statistics.numel() else None,
        "product": described(kept, [bm, bb * bl]) if tma_out and kept is not None else kept,
        "M": m,
    }
    constants = {
        "N": n,
        "K": k,
        "LENGTH": length,
        "STEP": step,
        "EPS": row.eps,
        "NORM": norm,
        "ACTIVATION": row.activation,
        "TOP": norms.largest(out.dtype) if out.dtype in FP8 else 0.0,
        "FLOOR": AMAX_FLOOR,
        "GUARD": not normed and (a.dtype not in FP8 or not bias is residual is None),
        "ONE_B_SCALE": b_scale is not None and b_scale.numel() == 1,
        "UPCAST": interpreted() and a.dtype not in FP8,
        "TMA": tma,
        "TMA_OUT": tma_out,
        "TMA_RESIDUAL": tma_residual,
        "SWAP": swap,
        "TURN": turn,
        "ONE_PASS": norm == "layer" and out.dtype in FP8 and not statistics.numel(),
        "BOUNDED": normed and out.dtype in FP8,
        "PTX": ptx.level(arch),
        "BM": bm,
        "BB": bb,
        "BL": bl,
        "BK": bk,
    }
    nbytes = moved(a, a_scale, b, b_scale, bias, residual, epilogue.weight, epilogue.shift, *outputs)
    return Launch(gemm_norm_kernel, (triton.cdiv(m, bm), tiles), args, constants, warps, stages, 2 * m * n * k, nbytes)


def turned(b: Tensor, bn: int, bk: int) -> TensorDescriptor:
    """b (N, K) with each 64 rows reordered: row 8 j + 2 t + e of the result is b's row 16 t + 2 j + e (j < 8, t < 4, e
    < 2).

    The trick: thread t of four on Hopper holds columns 8 j + 2 t + e of a product for all j. Reordered, these are 16
    neighbouring columns: 16 bytes of FP8 in one store instead of eight stores of 2 bytes. The descriptor has (j, t, e)
    as dimensions of their own, so the reordering is done by TMA while it loads.
    """
    n, k = b.shape
    return TensorDescriptor(b, [n // 64, 8, 4, 2, k], [64 * k, 2 * k, 16 * k, k, 1], [bn // 64, 8, 4, 2, bk])


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return triton.knobs.runtime.interpret
