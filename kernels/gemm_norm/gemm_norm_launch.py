"""The launches of loka::gemm_norm: which kernels run for given operands, in which tiles."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels import ptx
from loka_compile.kernels.gemm_norm.epilogue import (
    LAZY,
    Epilogue,
    Fused,
    GemmNorm,
    empty_outputs,
    empty_product,
    of_rows,
)
from loka_compile.kernels.gemm_norm.gemm_norm_kernel import gemm_norm_kernel
from loka_compile.kernels.launch import Launch, Specimen, moved
from loka_compile.kernels.norm_quantize import norm_quantize as norms
from loka_compile.kernels.norm_quantize.norm_quantize import FP8
from loka_compile.kernels.quantize.quantize import AMAX_FLOOR

WIDEST = 512
"""Columns of a tile: a row of one may be seen whole."""


def compiles_for(a: Tensor, b: Tensor, arch: str) -> bool:
    """Whether there are kernels for these operands on this chip."""
    return arch in SMS and a.dtype not in (torch.float32, torch.float64) and b.shape[0] <= norms.LONGEST_ROW


def launches(call: GemmNorm[Tensor], outputs: Fused[Tensor], arch: str) -> list[Launch]:
    """The fused kernel, or the product and then norm_quantize's."""
    epilogue, (out, scale, statistics, product) = call.epilogue, outputs
    if not needs_two(call.b.shape[0], epilogue.norm, epilogue.block, scale.numel() > 0):
        return [launch(call, outputs, arch)]
    product = product if product.numel() else empty_product(call)
    nothing = product.new_empty(0, dtype=torch.float32)
    plain = replace(epilogue, weight=None, shift=None, given=None, norm="none", block=0, activation="none")
    first = launch(replace(call, epilogue=plain), Fused(product, nothing, nothing, nothing), arch)
    return [first, norms.launch(of_rows(product, epilogue), norms.Normed(out, scale, statistics), arch)]


def needs_two(n: int, norm: str, block: int, scaled: bool) -> bool:
    """Whether a row that must be seen whole is none of a tile's: too long, or of blocks that are no power of two."""
    if n <= WIDEST and (not block or block == n or triton.next_power_of_2(block) == block):
        return False
    whole = norm in ("rms", "layer") and block in (0, n)
    return scaled or whole or (norm in ("rms", "layer") and block > WIDEST)


def launch(call: GemmNorm[Tensor], outputs: Fused[Tensor], arch: str) -> Launch:
    """Operands and outputs contiguous; not for what needs two."""
    a, a_scale, b, b_scale, epilogue = call.a, call.a_scale, call.b, call.b_scale, call.epilogue
    bias, residual, norm, block = epilogue.bias, epilogue.residual, epilogue.norm, epilogue.block
    out, scale, statistics, product = outputs
    (m, k), n = a.shape, b.shape[0]
    normed = norm in ("rms", "layer")
    length = LAZY if norm == "lazy" else (block or n) if normed else n
    bl, bb, step = tile_columns(n, length, whole=scale.numel() > 0 or (normed and length == n), normed=norm != "none")
    tiles = triton.cdiv(n, step)
    kept = product if product.numel() else None
    pressure = 0
    added = bias, residual, epilogue.weight, epilogue.shift, kept
    if norm == "layer" or epilogue.activation not in ("none", "relu") or any(each is not None for each in added):
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
        "EPS": epilogue.eps,
        "NORM": norm,
        "ACTIVATION": epilogue.activation,
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
    """b (N, K) with each 64 rows in another order: row 8 j + 2 t + e is b's 16 t + 2 j + e (j < 8, t < 4, e < 2).
    Thread t of four on Hopper gets columns 8 j + 2 t + e of a product: so it has 16 bytes of FP8 to store in one piece,
    not 2 by 2."""
    n, k = b.shape
    return TensorDescriptor(b, [n // 64, 8, 4, 2, k], [64 * k, 2 * k, 16 * k, k, 1], [bn // 64, 8, 4, 2, bk])


def interpreted() -> bool:
    return triton.knobs.runtime.interpret


def tile_columns(n: int, length: int, whole: bool, normed: bool) -> tuple[int, int, int]:
    """(columns of a block as the tile has them, blocks of a tile, columns to the next tile)"""
    widest = WIDEST if whole else WIDEST // 2
    if not normed or length == n:
        bn = max(16, min(triton.next_power_of_2(n), widest))
        return bn, 1, bn
    bl = triton.next_power_of_2(length)
    if bl != length:
        return max(bl, 16), 1, length
    bb = max(1, max(16, min(triton.next_power_of_2(n), widest)) // bl)
    return bl, bb, bl * bb


SMS = {"sm_90": 132, "sm_100": 148, "sm_89": 142, "sm_120": 188, "gfx942": 304, "gfx950": 256}


def configuration(
    m: int, bn: int, tiles: int, itemsize: int, pressure: int, arch: str
) -> tuple[int, int, int, int, bool]:
    """(rows of a tile, its step along K, warps, stages, swapped), chosen by instructions for each tensor operation.
    pressure: how many registers the epilogue needs beside the tile, 0 to 2."""
    sms, swap = SMS[arch], False
    bk = 128 // itemsize
    if arch in ("sm_90", "sm_100"):
        bm, warps = (64, 8) if bn == 512 else (128, 8) if bn == 256 else (128, 4)
        if arch == "sm_100" and pressure == 2 and bn >= 256:  # what else spills
            bm, swap = (32, True) if bn == 512 else (64, False)
        if triton.cdiv(m, bm) * tiles < sms and bn >= 128:  # too few tiles to fill the chip
            bm, warps, swap = (32, 8, True) if triton.cdiv(m, 32) * tiles > sms // 2 else (16, 8, True)
        return bm, bk, warps, 3, swap
    bk = 64 // itemsize
    if arch in ("gfx942", "gfx950"):
        bk = bk if bn > 128 else 2 * bk
        bm, warps = (64 if pressure else 128), (8 if bn == 512 else 4)
        while bm > 32 and triton.cdiv(m, bm) * tiles < sms:
            bm //= 2
        return bm, bk, warps, 2, swap
    bm, warps = (32, 8) if bn == 512 else (64, 8) if bn == 256 else (64, 4)
    return bm, bk, warps, 2, swap


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, beside the sequence GEMM, norm with activation, quantization."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def specimen(
        norm: str, activation: str, m: int, n: int, k: int, block: int = 0, weights: int = 0, save: bool = False,
        of: torch.dtype = fp8, dtype: torch.dtype = fp8, biased: bool = False, added: bool = False,
    ) -> Specimen:  # fmt: skip
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        a, b = empty(m, k, dtype=of), empty(n, k, dtype=of)
        a_scale, b_scale = (empty(m, 1), empty(n, 1)) if of == fp8 else (None, None)
        weight, shift = (empty(n, dtype=torch.bfloat16) if weights > i else None for i in (0, 1))
        bias = empty(n, dtype=torch.bfloat16) if biased else None
        residual = empty(m, n, dtype=torch.bfloat16) if added else None
        epilogue = Epilogue(bias, residual, weight, shift, None, norm, block, activation, dtype, 1e-6, save)
        call = GemmNorm(a, a_scale, b, b_scale, epilogue)
        outputs = empty_outputs(call)
        made = launch(call, outputs, arch)
        product, size = 2 * m * n, moved(outputs[0], outputs[1])
        behind = (2 + added + (added and save)) * product
        unfused = [("gemm", made.flops, moved(a, a_scale, b, b_scale) + product), ("norm", 0, behind)]
        if dtype == fp8:
            unfused.append(("quantize", 0, product + size))
        words = [
            *["bias"] * biased,
            *["residual"] * added,
            norm + (f"/{block}" if block else ""),
            *["affine"] * (weights > 0),
            activation,
            *["save"] * save,
        ]
        kinds = ["fp8" if each == fp8 else str(each).removeprefix("torch.") for each in (of, dtype)]
        name = " ".join(["gemm_norm", *(w for w in words if w != "none"), " to ".join(kinds), f"{m}x{n}x{k}"])
        needs = "mma", *(["fp8_mma"] if of == fp8 else []), "wide_loads", "wide_stores"
        return Specimen(name, made, tuple(unfused), needs)

    bf16 = torch.bfloat16
    return [
        specimen("rms", "relu", 65536, 512, 512),
        specimen("layer", "relu", 65536, 512, 512, weights=2),
        specimen("rms", "relu", 65536, 512, 512, weights=2),
        specimen("rms", "silu", 65536, 512, 512),
        specimen("rms", "hard_swish", 65536, 512, 512, block=256),
        specimen("layer", "gelu", 65536, 512, 512, weights=2),
        specimen("rms", "relu", 262144, 512, 512),
        specimen("rms", "relu", 4096, 512, 512),
        specimen("rms", "relu", 1024, 512, 512),
        specimen("rms", "relu", 262144, 256, 256),
        specimen("layer", "relu", 65536, 128, 256, weights=2),
        specimen("rms", "relu", 65536, 512, 512, save=True, dtype=bf16),
        specimen("rms", "hard_swish", 65536, 512, 512, block=256, save=True),
        specimen("layer", "gelu", 65536, 512, 512, weights=2, save=True, dtype=bf16, biased=True),
        specimen("layer", "silu", 65536, 512, 512, weights=2, save=True, biased=True),
        specimen("layer", "gelu", 4096, 512, 512, weights=2, save=True, biased=True),
        specimen("layer", "silu", 65536, 256, 256, weights=2, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "gelu", 65536, 1024, 512, of=bf16, dtype=bf16, biased=True),
        specimen("layer", "none", 65536, 256, 256, weights=2, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("layer", "none", 65536, 256, 256, weights=2, save=True, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("layer", "none", 65536, 512, 512, weights=2, save=True, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("rms", "none", 65536, 512, 512, weights=1, of=bf16, added=True),
        specimen("layer", "relu", 4096, 512, 512, weights=2, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "gelu", 65536, 1024, 512, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "relu", 65536, 512, 512),
        specimen("rms", "relu", 65536, 512, 512, of=bf16, dtype=bf16),
        specimen("rms", "relu", 4096, 512, 512, of=bf16, dtype=bf16),
        specimen("rms", "hard_swish", 65536, 1024, 512, block=256, dtype=bf16),
        specimen("lazy", "relu", 65536, 1024, 1024, dtype=bf16),
    ]
