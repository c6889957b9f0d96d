"""loka::gdpa in Triton, forward: one kernel that keeps short keys and values resident, one that walks long ones.

Addresses: a tensor is (sequence, head, row, value) with strides *_b, *_h, *_t and 1. A jagged tensor has no sequence
stride: its sequences begin at row cu_seqlens[i] (of_head). A program's number counts tiles within heads within
sequences (of_program).

The trick: rows and columns beyond an end are loaded as zeros. They give scores of 0, and every activation maps 0 to 0,
so no score needs a mask except for a window. The activation is rounded to the operands' dtype for the second product;
the outer scale multiplies the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels.gdpa.gdpa_activation import activated
from loka_compile.kernels.launch import Launch, Specimen, moved
from loka_compile.kernels.norms import HALVES

RESIDENT = 128
"""The most keys that a program holds together with their values."""
WIDEST = 128
"""The largest head of the kernels, in values."""
PROGRAMS = 528
"""The fewest programs of a launch, if there is work for them: four for each SM of an H100."""


@triton.jit
def of_head(x, cu_seqlens, sequence, head, stride_b, stride_h, stride_t, longest):
    """(pointer to the head's first row, number of its rows). longest: the number of rows if the tensor is dense."""
    x += head.to(tl.int64) * stride_h
    if cu_seqlens is None:
        return x + sequence.to(tl.int64) * stride_b, longest
    else:
        first = tl.load(cu_seqlens + sequence)
        rows = tl.load(cu_seqlens + sequence + 1) - first
        return x + first.to(tl.int64) * stride_t, rows.to(tl.int32)


@triton.jit
def of_program(longest, heads, ROWS: tl.constexpr):
    """(sequence, head, first row of the tile) of this program, in a grid over the tiles of all heads."""
    tiles = tl.cdiv(longest, ROWS)
    which = tl.program_id(0) // tiles
    return which // heads, which % heads, tl.program_id(0) % tiles * ROWS


@triton.jit
def spots(stride, left, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(offsets, mask) of a tile with `left` rows in bounds."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = row < left
    if D != COLUMNS:
        mask = mask & (column < D)
    return row * stride + column, mask


@triton.jit
def tile(x, first, rows, stride, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS rows from row `first`; zeros beyond the end."""
    at, mask = spots(stride, rows - first, D, ROWS, COLUMNS)
    return tl.load(x + tl.cast(first, tl.int64) * stride + at, mask=mask, other=0.0)


@triton.jit
def put(x, y, factor, first, rows, stride, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store y * factor. It is reshaped to eighths first; else Triton stores AMD's matrix layout in 64 bits a thread."""
    at, mask = spots(stride, rows - first, D, ROWS, COLUMNS)
    y = tl.reshape(tl.reshape(y, (ROWS, COLUMNS // 8, 8)) * factor, (ROWS, COLUMNS))
    tl.store(x + tl.cast(first, tl.int64) * stride + at, y.to(x.dtype.element_ty), mask=mask)


@triton.jit
def within(y, i, j, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y, with 0 where positions are further apart than the window. i, j: the positions of y's first row and first
    column."""
    if WINDOW < 0:
        return y
    else:
        distance = (i - j) + tl.arange(0, ROWS)[:, None] - tl.arange(0, COLUMNS)[None, :]
        return tl.where((distance <= WINDOW) & (distance >= -WINDOW), y, 0.0)


@triton.jit
def reach(first, ROWS: tl.constexpr, rows, WINDOW: tl.constexpr, STEP: tl.constexpr):
    """The rows of the other side that a tile may see: (first, end), first a multiple of STEP."""
    if WINDOW < 0:
        return 0, rows
    else:
        return tl.maximum(first - WINDOW, 0) // STEP * STEP, tl.minimum(rows, first + ROWS + WINDOW)


@triton.jit
def gdpa_kernel(
    q, k, v, out, cu_seqlens_q, cu_seqlens_k, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    heads, longest_q, longest_k, scale, outer,
    ACTIVATION: tl.constexpr, INSIDE: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BM queries of one head, against keys and values in steps of BN."""
    sequence, head, first = of_program(longest_q, heads, BM)
    q, rows = of_head(q, cu_seqlens_q, sequence, head, q_b, q_h, q_t, longest_q)
    k, keys = of_head(k, cu_seqlens_k, sequence, head, k_b, k_h, k_t, longest_k)
    v, _ = of_head(v, cu_seqlens_k, sequence, head, v_b, v_h, v_t, longest_k)
    out, _ = of_head(out, cu_seqlens_q, sequence, head, o_b, o_h, o_t, longest_q)
    if first < rows:
        query = tile(q, first, rows, q_t, D, BM, BD)
        total = tl.zeros((BM, BD), tl.float32)
        low, high = reach(first, BM, keys, WINDOW, BN)
        for at in range(low, high, BN):
            key = tile(k, at, keys, k_t, D, BN, BD)
            value = tile(v, at, keys, v_t, D, BN, BD)
            scores = tl.dot(query, key.T)
            if INSIDE:
                scores *= scale
            p = activated(within(scores, first, at, WINDOW, BM, BN), ACTIVATION)
            total = tl.dot(p.to(value.dtype), value, total)
        put(out, total, outer, first, rows, o_t, D, BM, BD)


@triton.jit
def gdpa_resident_kernel(
    q, k, v, out, cu_seqlens_q, cu_seqlens_k, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    heads, longest_q, longest_k, scale, outer, splits,
    ACTIVATION: tl.constexpr, INSIDE: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All keys and values of one head stay in registers; the program walks every splits-th tile of BM queries."""
    which, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    sequence, head = which // heads, which % heads
    q, rows = of_head(q, cu_seqlens_q, sequence, head, q_b, q_h, q_t, longest_q)
    k, keys = of_head(k, cu_seqlens_k, sequence, head, k_b, k_h, k_t, longest_k)
    v, _ = of_head(v, cu_seqlens_k, sequence, head, v_b, v_h, v_t, longest_k)
    out, _ = of_head(out, cu_seqlens_q, sequence, head, o_b, o_h, o_t, longest_q)
    key = tile(k, 0, keys, k_t, D, BN, BD)
    value = tile(v, 0, keys, v_t, D, BN, BD)
    for first in range(split * BM, rows, splits * BM):
        query = tile(q, first, rows, q_t, D, BM, BD)
        scores = tl.dot(query, key.T)
        if INSIDE:
            scores *= scale
        p = activated(within(scores, first, 0, WINDOW, BM, BN), ACTIVATION)
        total = tl.dot(p.to(value.dtype), value)
        put(out, total, outer, first, rows, o_t, D, BM, BD)


# ---------------------------------------------------------------- launches


def supported(q: Tensor) -> bool:
    """Whether the kernels take these queries: 16 bits, heads of at most WIDEST values."""
    return q.dtype in HALVES and q.shape[-1] <= WIDEST


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    activation: str,
    scale: float,
    scale_inside: bool,
    window: int,
    arch: str,
) -> Launch:
    """The launch for tensors with contiguous rows."""
    heads, d = q.shape[1], q.shape[-1]
    sequences = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    resident = max_seqlen_k <= RESIDENT and not arch.startswith("gfx")
    bm, bn, warps, stages = configuration(max_seqlen_k if resident else 0, d, window, arch)
    bd = max(16, triton.next_power_of_2(d))
    tiles = triton.cdiv(max_seqlen_q, bm)
    args = {"q": q, "k": k, "v": v, "out": out, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    args |= strides(q=q, k=k, v=v, o=out)
    args |= {"heads": heads, "longest_q": max_seqlen_q, "longest_k": max_seqlen_k, "scale": float(scale)}
    args["outer"] = 1.0 if scale_inside else float(scale)
    constants = {"ACTIVATION": activation, "INSIDE": scale_inside, "WINDOW": window, "D": d}
    constants |= {"BM": bm, "BN": bn, "BD": bd}
    programs = sequences * heads
    if resident:
        args["splits"] = min(max(1, triton.cdiv(PROGRAMS, max(programs, 1))), max(tiles, 1))
        programs *= args["splits"] if tiles else 0
    else:
        programs *= tiles
    flops = 2 * products(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_k, window)
    kernel = gdpa_resident_kernel if resident else gdpa_kernel
    return Launch(kernel, (programs,), args, constants, warps, stages, flops, moved(q, k, v, out))


def configuration(resident: int, d: int, window: int, arch: str) -> tuple[int, int, int, int]:
    """(BM, BN, warps, stages), on each chip sizes that do not spill with any activation. resident: number of resident
    keys, or 0.

    AMD's matrix cores read operands from registers, where 128 resident keys leave too little room.
    """
    if resident:
        bn, stages = max(16, triton.next_power_of_2(resident)), 3 if arch in ("sm_90", "sm_100") else 2
        large = arch == "sm_90" or (arch == "sm_100" and (d > 64 or bn <= 64))
        return (128, bn, 8, stages) if large else (64, bn, 4, stages)
    if arch == "sm_90":
        return 128, 128 if window < 0 else 64, 8, 2
    return 128, 64, 4 if arch == "sm_100" else 8, 2


def strides(**tensors: Tensor) -> dict[str, int]:
    """Strides by sequence (0 for a jagged tensor), head and row, under the kernels' names."""
    found: dict[str, int] = {}
    for name, x in tensors.items():
        dense = x.dim() == 4
        found |= {f"{name}_b": x.stride(0) if dense else 0, f"{name}_h": x.stride(1)}
        found[f"{name}_t"] = x.stride(2) if dense else x.stride(0)
    return found


def products(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, longest_k: int, window: int
) -> int:
    """Operations of one of the two products. Jagged keys count as if all sequences had the average length."""
    rows = q.shape[0] if cu_seqlens_q is not None else q.shape[0] * q.shape[2]
    keys = longest_k if cu_seqlens_k is None else k.shape[0] // max(1, cu_seqlens_k.shape[0] - 1)
    return 2 * rows * q.shape[1] * q.shape[-1] * (keys if window < 0 else min(keys, 2 * window + 1))


def specimens(arch: str) -> list[Specimen]:
    """PFFN's short keys and self-attention's long ones, against two batched products and the activation."""

    def specimen(
        d: int,
        keys: int,
        activation: str,
        b: int = 1024,
        queries: int = 1024,
        heads: int = 2,
        window: int = -1,
        jagged: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Specimen:
        def empty(length: int, is_jagged: bool) -> Tensor:
            shape = (b * length, heads, d) if is_jagged else (b, heads, length, d)
            return torch.empty(shape, dtype=dtype, device="meta")

        q, k = empty(queries, jagged), empty(keys, jagged and keys > RESIDENT)
        cu = torch.empty(b + 1, dtype=torch.int32, device="meta") if jagged else None
        lengths = cu, cu if k.dim() == 3 else None, queries, keys
        made = launch(q, k, k, q, *lengths, activation, 1.0, False, window, arch)
        scores = b * heads * queries * keys * 2
        product = 2 * b * heads * queries * keys * d
        unfused = (
            ("bmm", product, moved(q, k) + scores),
            ("activation", 0, 2 * scores),
            ("bmm", product, moved(q, k) + scores),
        )
        words = ["gdpa", activation, *["jagged"] * jagged, *[f"window {window}"] * (window >= 0)]
        words += [*["fp16"] * (dtype == torch.float16), f"{b}x{heads}x{queries}x{keys}x{d}"]
        return Specimen(" ".join(words), made, unfused, ("mma", "wide_loads", "wide_stores"))

    return [
        specimen(128, 128, "gelu"),
        specimen(96, 128, "gelu"),
        specimen(64, 128, "silu"),
        specimen(128, 128, "gelu", jagged=True),
        specimen(128, 64, "gelu_approx"),
        specimen(128, 1024, "gelu", b=64),
        specimen(64, 1024, "silu", b=64),
        specimen(128, 1024, "silu", b=64, window=64, jagged=True),
        specimen(96, 1024, "hard_swish", b=64, dtype=torch.float16),
    ]
