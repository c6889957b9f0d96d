"""loka::gdpa in Triton, backward: one kernel over tiles of queries for dq, one over tiles of keys for dk and dv.

Both compute the scores again: seven products instead of five. In return sums go in one order without atomics, so
gradients have the same bits every time. Rows beyond an end are loaded as zeros and add nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels.gdpa.gdpa_activation import through, with_derivative
from loka_compile.kernels.gdpa.gdpa_kernel import (
    of_head,
    of_program,
    products,
    put,
    reach,
    strides,
    tile,
    within,
)
from loka_compile.kernels.launch import Launch, Specimen, moved


@triton.jit
def gdpa_dq_kernel(
    q, k, v, grad, dq, cu_seqlens_q, cu_seqlens_k,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dq_b, dq_h, dq_t,
    heads, longest_q, longest_k, scale, outer,
    ACTIVATION: tl.constexpr, INSIDE: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dq of BM queries of one head. Operands and strides as in gdpa_kernel; g_*, dq_*: strides of grad and dq."""
    sequence, head, first = of_program(longest_q, heads, BM)
    q, rows = of_head(q, cu_seqlens_q, sequence, head, q_b, q_h, q_t, longest_q)
    k, keys = of_head(k, cu_seqlens_k, sequence, head, k_b, k_h, k_t, longest_k)
    v, _ = of_head(v, cu_seqlens_k, sequence, head, v_b, v_h, v_t, longest_k)
    grad, _ = of_head(grad, cu_seqlens_q, sequence, head, g_b, g_h, g_t, longest_q)
    dq, _ = of_head(dq, cu_seqlens_q, sequence, head, dq_b, dq_h, dq_t, longest_q)
    if first < rows:
        query, above = tile(q, first, rows, q_t, D, BM, BD), tile(grad, first, rows, g_t, D, BM, BD)
        total = tl.zeros((BM, BD), tl.float32)
        low, high = reach(first, BM, keys, WINDOW, BN)
        for at in range(low, high, BN):
            key, value = tile(k, at, keys, k_t, D, BN, BD), tile(v, at, keys, v_t, D, BN, BD)
            scores = tl.dot(query, key.T)
            if INSIDE:
                scores *= scale
            slope = with_derivative(scores, ACTIVATION)[1]
            slope = through(tl.dot(above, value.T), scores, slope, ACTIVATION)
            slope = within(slope, first, at, WINDOW, BM, BN)
            total = tl.dot(slope.to(key.dtype), key, total)
        put(dq, total, scale, first, rows, dq_t, D, BM, BD)


@triton.jit
def gdpa_dkdv_kernel(
    q, k, v, grad, dk, dv, cu_seqlens_q, cu_seqlens_k,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    heads, longest_q, longest_k, scale, outer,
    ACTIVATION: tl.constexpr, INSIDE: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dk and dv of BN keys of one head. Scores are transposed: keys by queries."""
    sequence, head, first = of_program(longest_k, heads, BN)
    q, rows = of_head(q, cu_seqlens_q, sequence, head, q_b, q_h, q_t, longest_q)
    k, keys = of_head(k, cu_seqlens_k, sequence, head, k_b, k_h, k_t, longest_k)
    v, _ = of_head(v, cu_seqlens_k, sequence, head, v_b, v_h, v_t, longest_k)
    grad, _ = of_head(grad, cu_seqlens_q, sequence, head, g_b, g_h, g_t, longest_q)
    dk, _ = of_head(dk, cu_seqlens_k, sequence, head, dk_b, dk_h, dk_t, longest_k)
    dv, _ = of_head(dv, cu_seqlens_k, sequence, head, dv_b, dv_h, dv_t, longest_k)
    if first < keys:
        key, value = tile(k, first, keys, k_t, D, BN, BD), tile(v, first, keys, v_t, D, BN, BD)
        of_keys, of_values = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BD), tl.float32)
        low, high = reach(first, BN, rows, WINDOW, BM)
        for at in range(low, high, BM):
            query, above = tile(q, at, rows, q_t, D, BM, BD), tile(grad, at, rows, g_t, D, BM, BD)
            scores = tl.dot(key, query.T)
            if INSIDE:
                scores *= scale
            p, slope = with_derivative(scores, ACTIVATION)
            p = within(p, first, at, WINDOW, BN, BM)
            of_values = tl.dot(p.to(query.dtype), above, of_values)
            slope = through(tl.dot(value, above.T), scores, slope, ACTIVATION)
            slope = within(slope, first, at, WINDOW, BN, BM)
            of_keys = tl.dot(slope.to(query.dtype), query, of_keys)
        put(dk, of_keys, scale, first, keys, dk_t, D, BN, BD)
        put(dv, of_values, outer, first, keys, dv_t, D, BN, BD)


# ---------------------------------------------------------------- launches


def launches(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    activation: str,
    scale: float,
    scale_inside: bool,
    window: int,
    arch: str,
) -> tuple[Launch, Launch]:
    """The launches for dq, and for dk and dv. All tensors have contiguous rows."""
    heads, d = q.shape[1], q.shape[-1]
    sequences = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    product = products(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_k, window)
    operands = {"q": q, "k": k, "v": v, "grad": grad}
    rest = {"heads": heads, "longest_q": max_seqlen_q, "longest_k": max_seqlen_k, "scale": float(scale)}
    rest["outer"] = 1.0 if scale_inside else float(scale)
    constants = {"ACTIVATION": activation, "INSIDE": scale_inside, "WINDOW": window, "D": d}
    constants["BD"] = max(16, triton.next_power_of_2(d))
    made = []
    for kernel, longest, outs in (
        (gdpa_dq_kernel, max_seqlen_q, {"dq": dq}),
        (gdpa_dkdv_kernel, max_seqlen_k, {"dk": dk, "dv": dv}),
    ):
        own, other, warps, stages = configuration(d, len(outs) == 2, window, arch)
        bm, bn = (other, own) if len(outs) == 2 else (own, other)
        args = {**operands, **outs, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
        args |= strides(q=q, k=k, v=v, g=grad, **outs) | rest
        grid = (sequences * heads * triton.cdiv(longest, own),)
        nbytes, flops = moved(*operands.values(), *outs.values()), (2 + len(outs)) * product
        made.append(Launch(kernel, grid, args, constants | {"BM": bm, "BN": bn}, warps, stages, flops, nbytes))
    return made[0], made[1]


def configuration(d: int, of_keys: bool, window: int, arch: str) -> tuple[int, int, int, int]:
    """(rows of a program, rows of the other side in a step, warps, stages): on each chip sizes that do not spill with
    any activation."""
    if not of_keys:
        return (128, 64, 8, 2) if arch in ("sm_90", "sm_100") else (64, 32, 4, 2)
    if arch == "sm_90":
        return 128 if window < 0 or d <= 64 else 64, 32, 8, 2
    if arch == "sm_100":
        return (128, 64, 8, 2) if d > 64 else (64, 32, 4, 2)
    return 64, 32, 4 if d <= 64 or arch.startswith("gfx") else 8, 2


def specimens(arch: str) -> list[Specimen]:
    """Both kernels at the forward's shapes."""

    def specimen(d: int, keys: int, activation: str, b: int, window: int = -1, jagged: bool = False) -> list[Specimen]:
        queries, heads = 1024, 2
        q_shape = (b * queries, heads, d) if jagged else (b, heads, queries, d)
        k_shape = (b * keys, heads, d) if jagged else (b, heads, keys, d)
        q, k = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in (q_shape, k_shape))
        cu = torch.empty(b + 1, dtype=torch.int32, device="meta") if jagged else None
        made = launches(q, q, k, k, q, k, k, cu, cu, queries, keys, activation, 1.0, False, window, arch)
        words = [activation, *["jagged"] * jagged, *[f"window {window}"] * (window >= 0)]
        name = " ".join([*words, f"{b}x{heads}x{queries}x{keys}x{d}"])
        needs = ("mma", "wide_loads", "wide_stores")
        return [Specimen(f"gdpa {of} {name}", each, (), needs) for of, each in zip(("dq", "dk dv"), made, strict=True)]

    return [
        *specimen(128, 128, "gelu", 1024),
        *specimen(96, 128, "gelu", 1024, jagged=True),
        *specimen(64, 128, "silu", 1024),
        *specimen(128, 1024, "silu", 64, window=64, jagged=True),
        *specimen(64, 1024, "gelu_approx", 64),
    ]
