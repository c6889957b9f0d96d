"""Toy kernels, most of them with a fault on purpose: `loka kernels --module toy_kernels`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels.launch import Launch, Specimen, moved

M, N, K = 65536, 512, 512


@triton.jit
def gemm(
    a,
    b,
    c,
    scale,
    M,
    N,
    K,
    FLAT: tl.constexpr,
    ROLES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tiles_n = tl.cdiv(N, BN)
    tiles = tl.cdiv(M, BM) * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLAT, warp_specialize=ROLES):
        m, n = tile // tiles_n * BM, tile % tiles_n * BN
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(tl.cdiv(K, BK)):
            total = tl.dot(a.load([m, k * BK]), b.load([n, k * BK]).T, total)
        scales = tl.load(scale + m + tl.arange(0, BM))
        c.store([m, n], (total * scales[:, None]).to(tl.bfloat16))


@triton.jit(do_not_specialize=["columns"])
def masked_gemm(a, b, c, columns, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The mask and the stride are of a number that nothing is known of: what it guards is stored one by one."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(tl.cdiv(K, BK)):
        x = tl.load(a + m[:, None] * K + (k + i * BK)[None, :])
        y = tl.load(b + n[None, :] * K + (k + i * BK)[:, None])
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * columns + n[None, :], total.to(tl.bfloat16), mask=n[None, :] < columns)


@triton.jit
def column_sums(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((BN,), tl.float32)
    for i in range(0, M, BM):
        total += tl.sum(tl.load(x + (i + tl.arange(0, BM))[:, None] * N + n[None, :]).to(tl.float32), 0)
    tl.store(y + n, total)


@triton.jit
def refused(x):
    tl.static_assert(False, "not for any chip")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def persistent(dtype: torch.dtype, stages: int = 3, flat: bool = False, roles: bool = False) -> Launch:
    a, b, c, scale = empty(M, K, dtype=dtype), empty(N, K, dtype=dtype), empty(M, N), empty(M, dtype=torch.float32)
    bm, bn, bk = 128, 256, 128 // dtype.itemsize
    args = {
        "a": TensorDescriptor.from_tensor(a, [bm, bk]),
        "b": TensorDescriptor.from_tensor(b, [bn, bk]),
        "c": TensorDescriptor.from_tensor(c, [bm, bn]),
        "scale": scale,
        "M": M,
        "N": N,
        "K": K,
    }
    constants = {"FLAT": flat, "ROLES": roles, "BM": bm, "BN": bn, "BK": bk}
    return Launch(gemm, (132,), args, constants, 8, stages, 2 * M * N * K, moved(a, b, c, scale))


def masked(dtype: torch.dtype, columns: int, warps: int = 8, tile: int = 128) -> Launch:
    args = {"a": empty(M, K, dtype=dtype), "b": empty(N, K, dtype=dtype), "c": empty(M, columns)}
    grid, sizes = (M // tile, 512 // tile), {"BM": tile, "BN": tile, "BK": 64}
    return Launch(
        masked_gemm, grid, args | {"columns": columns, "K": K}, sizes, warps, 3, 2 * M * N * K, moved(*args.values())
    )


def sums() -> Launch:
    x, y = empty(M, N), empty(N, dtype=torch.float32)
    return Launch(
        column_sums, (N // 128,), {"x": x, "y": y, "M": M, "N": N}, {"BM": 32, "BN": 128}, 4, 1, 0, moved(x, y)
    )


def specimens(arch: str) -> list[Specimen]:
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn
    unfused = (("gemm", 2 * M * N * K, 10**8), ("cast", 0, 3 * 10**8))
    listed = [
        Specimen("column sums", sums(), needs=("wide_loads",)),
        Specimen("column sums, all wide", sums(), needs=("wide_stores",)),
        Specimen("masked", masked(torch.bfloat16, 512), needs=("mma",)),
        Specimen("masked, unaligned", masked(torch.bfloat16, 509), needs=("mma",)),
        Specimen("bf16 for fp8", masked(torch.bfloat16, 509), needs=("fp8_mma",)),
        Specimen("no product", sums(), needs=("mma",)),
        Specimen("spilling", masked(torch.bfloat16, 509, warps=1)),
        Specimen("refused", Launch(refused, (1,), {"x": empty(16, 16)})),
    ]
    if arch == "gfx942":
        foreign = masked(torch.float8_e4m3fn, 509)  # CDNA 3 multiplies the other e4m3
        return [*listed, Specimen("fp8", masked(fp8, 509), needs=("fp8_mma",)), Specimen("foreign fp8", foreign)]
    return [
        *listed,
        Specimen("fp8", persistent(fp8), unfused, needs=("fp8_mma", "wide_loads", "wide_stores")),
        Specimen("fp8, flat", persistent(fp8, flat=True), needs=("fp8_mma",)),
        Specimen("fp8, roles", persistent(fp8, roles=True)),
        Specimen("too much shared memory", persistent(fp8, stages=7)),
    ]
