"""The launches of loka::triton_gemm: which kernels run for given operands, in which tiles."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels.gemm.triton_gemm_kernel import finish_kernel, triton_gemm_kernel
from loka_compile.kernels.launch import Launch, Specimen, moved
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.quantize.quantize import BLOCK
from loka_compile.spec.chips import CHIPS

PRECISE_K = 1024
"""The longest contraction that Hopper's FP8 tensor cores add up alone."""
LONG = 4096
"""The shortest contraction that may be split."""
FINISH = 1024
"""Values that a program of finish_kernel adds up."""
TILES = {
    "sm_90": [(128, 256, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4)],
    "sm_90 twice": [(64, 128, 4), (64, 64, 4)],
    "sm_100": [(128, 256, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4)],
    "sm_100 twice": [(128, 128, 8), (64, 64, 4)],
    "gfx": [(128, 256, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4)],
    "gfx twice": [(256, 128, 8), (64, 128, 4), (64, 64, 4)],
    "sm": [(128, 128, 8), (64, 64, 4)],
    "sm adding": [(64, 64, 4)],
}
"""(rows, columns, warps) of tiles, largest first. "twice": kernels that hold their sums twice or more; "adding":
kernels that add atomically. On each chip these sizes issue the fewest instructions for their work without a spill."""


def configuration(
    m: int, n: int, k: int, batch: int, itemsize: int, kind: str, arch: str
) -> tuple[int, int, int, int, int, int]:
    """(rows, columns, step along K, warps, stages, parts of K): the largest tile of which there are enough to fill the
    chip. A long contraction takes the largest tile and is split into parts."""
    amd, sms = arch.startswith("gfx"), (CHIPS[arch] if arch in CHIPS else CHIPS["sm_90"]).sms
    family = arch if arch in TILES else "gfx" if amd else "sm"
    bk = (128 if itemsize == 1 or not amd else 64) // itemsize
    stages = 3 if family in ("sm_90", "sm_100") else 2
    long = k >= LONG
    columns = max(32, triton.next_power_of_2(n))
    *larger, least = [(bm, min(bn, columns), warps) for bm, bn, warps in TILES.get(f"{family} {kind}", TILES[family])]
    found = [*(each for each in larger if triton.cdiv(n, each[1]) * each[1] <= 1.125 * n), least]
    count = [triton.cdiv(m, bm) * triton.cdiv(n, bn) * batch for bm, bn, _ in found]
    chosen = next((i for i, tiles in enumerate(count) if long or tiles >= sms), len(found) - 1)
    splits = max(1, min(sms // max(count[chosen], 1), triton.cdiv(k, bk) // 8)) if long else 1
    steps = triton.cdiv(k, bk)
    return *found[chosen][:2], bk, found[chosen][2], stages, triton.cdiv(steps, triton.cdiv(steps, splits) or 1) or 1


def scalings(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None) -> tuple[str, str] | None:
    """(kind of a's scale, of b's), each none, tensor, row or block, told by shape; None if a shape fits none. Rows win
    over blocks."""
    for left in _kinds(a, a_scale, -1):
        for right in _kinds(b, b_scale, -2):
            if (left == "block") == (right == "block"):
                return left, right
    return None


def _kinds(x: Tensor, scale: Tensor | None, along: int) -> list[str]:
    """The kinds that a scale's shape allows. along: the contraction's axis; if it is at most a block long, a scale a
    block is a scale a row too."""
    if scale is None or scale.shape == (1,):
        return ["none" if scale is None else "tensor"]
    rows, k = x.shape[-3 - along], x.shape[along]
    shapes = {"row": (rows, 1), "block": (rows if along == -1 else -(-rows // BLOCK), -(-k // BLOCK))}
    return [kind for kind, each in shapes.items() if scale.shape == (*x.shape[:-2], *each[:: -1 if along == -2 else 1])]


def launches(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    activation: str,
    deterministic: bool,
    arch: str,
    sums: Tensor | None = None,
) -> list[Launch]:
    """The launches for operands as `prepared` returns them.

    out: contiguous, and zero if the first launch has ATOMIC.
    sums: (..., M), where the sums of a along K go; not for FP8.
    """
    kinds = scalings(a, a_scale, b, b_scale)
    assert kinds is not None
    a, b, whole = (each if each.dim() == 3 else each.unsqueeze(0) for each in (a, b, out))
    (batch, m, k), n = a.shape, b.shape[2]
    precise = arch == "sm_90" and a.dtype in FP8 and k > PRECISE_K
    adding = not deterministic and bias is None and activation == "none" and out.dtype == torch.float32 and k >= LONG
    twice = kinds[0] == "block" or precise or activation in ("silu", "gelu")
    kind = "adding" if adding and arch in ("sm_89", "sm_120") else "twice" if twice else ""
    bm, bn, bk, warps, stages, splits = configuration(m, n, k, batch, a.element_size(), kind, arch)
    atomic = adding and splits > 1
    finish = splits > 1 and not atomic
    to = a.new_empty((batch * splits, m, n), dtype=torch.float32) if finish else whole
    sums_to = a.new_empty((batch * splits, m), dtype=torch.float32) if finish and sums is not None else sums
    flip_a, flip_b = not a.is_contiguous(), not b.mT.is_contiguous()
    stored_a, stored_b = a.mT if flip_a else a, b if flip_b else b.mT
    hopper = arch in ("sm_90", "sm_100", "sm_120")
    tma = hopper and a.numel() and b.numel() and describable(stored_a) and describable(stored_b)
    tma_out = hopper and not atomic and to.numel() and describable(to)
    described = TensorDescriptor.from_tensor
    args = {
        "a": described(stored_a, [1, bk, bm] if flip_a else [1, bm, bk]) if tma else stored_a,
        "b": described(stored_b, [1, bk, bn] if flip_b else [1, bn, bk]) if tma else stored_b,
        "a_scale": a_scale,
        "b_scale": b_scale,
        "bias": None if finish else bias,
        "out": described(to, [1, bm, bn]) if tma_out else to,
        "sums": sums_to,
        "M": m,
        "K": k,
        **dict(zip(("a_scale_z", "a_scale_m", "a_scale_k"), strides(a_scale, -1), strict=True)),
        **dict(zip(("b_scale_z", "b_scale_n", "b_scale_k"), strides(b_scale, -2), strict=True)),
    }
    constants = {
        "N": n,
        "TRIPS": triton.cdiv(k, bk) if splits == 1 and k <= PRECISE_K else 0,
        "SPLITS": splits,
        "ATOMIC": atomic,
        "A_SCALING": kinds[0],
        "B_SCALING": kinds[1],
        "PROMOTE": precise,
        "ACTIVATION": "none" if finish else activation,
        "TMA": bool(tma),
        "TMA_OUT": bool(tma_out),
        "FLIP_A": flip_a,
        "FLIP_B": flip_b,
        "EVEN_M": m % bm == 0,
        "EVEN_K": k % (bk * splits) == 0,
        "WIDE": arch.startswith("gfx"),
        "BM": bm,
        "BN": bn,
        "BK": bk,
    }
    grid = triton.cdiv(m, bm) * triton.cdiv(n, bn), batch * splits
    flops, nbytes = 2 * batch * m * n * k, moved(a, a_scale, b, b_scale, bias, to, sums_to)
    made = [Launch(triton_gemm_kernel, grid, args, constants, warps, stages, flops, nbytes)]
    if finish:
        beside = {"sums": sums_to, "sum_out": sums}
        args = {"parts": to, "bias": bias, "out": out, **beside, "SIZE": m * n}
        constants = {"N": n, "SPLITS": splits, "ACTIVATION": activation, "EVEN": m % 2 == 0, "STEP": FINISH}
        grid = triton.cdiv(m * n, FINISH), batch
        made.append(Launch(finish_kernel, grid, args, constants, 4, 1, 0, moved(to, bias, out, *beside.values())))
    return made


def describable(x: Tensor) -> bool:
    """Whether a TMA descriptor can describe the tensor: its first byte and its rows lie on multiples of 16 bytes. A
    single row may have any stride."""
    steps = x.shape[-1], x.storage_offset(), *x.stride()[:-1]
    return all(step * x.element_size() % 16 == 0 for step in steps)


def strides(scale: Tensor | None, along: int) -> tuple[int, int, int]:
    """A scale's strides: (of the batch, of rows of a or columns of b, along K)."""
    if scale is None or scale.dim() == 1:
        return 0, 0, 0
    return scale.stride(0) if scale.dim() == 3 else 0, scale.stride(-3 - along), scale.stride(along)


def prepared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both operands, each contiguous as it is or transposed; FP8 is contiguous along K."""

    def bring(rows: Tensor) -> Tensor:
        if rows.is_contiguous() or (rows.dtype not in FP8 and rows.mT.is_contiguous()):
            return rows
        return rows.contiguous()

    return bring(a), bring(b.mT).mT


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes; those with an epilogue against the product followed by bias and activation."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def specimen(
        recipe: str,
        m: int,
        n: int,
        k: int,
        activation: str = "none",
        batch: int = 0,
        of: torch.dtype = fp8,
        out: torch.dtype = torch.bfloat16,
        finish: bool = False,
        deterministic: bool = True,
        flipped: bool = False,
    ) -> Specimen:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            shape = (batch, *shape) if batch and len(shape) > 1 else shape
            return torch.empty(shape, dtype=dtype, device="meta")

        other = fp8 if of in FP8 else of
        a = empty(k, m, dtype=of).mT if flipped else empty(m, k, dtype=of)
        b = empty(k, n, dtype=other) if flipped else empty(n, k, dtype=other).mT
        blocks = triton.cdiv(k, BLOCK)
        a_scale, b_scale = {
            "rowwise": (empty(m, 1), empty(1, n)),
            "tensorwise": (empty(1), empty(1)),
            "blockwise": (empty(m, blocks), empty(blocks, triton.cdiv(n, BLOCK))),
        }.get(recipe, (None, None))
        bias = None if activation == "none" else empty(n, dtype=torch.bfloat16)
        c = empty(m, n, dtype=out)
        made = launches(a, a_scale, b, b_scale, bias, c, activation, deterministic, arch)[int(finish)]
        size = moved(c)
        plain = ("gemm", made.flops, made.nbytes - moved(bias)), ("bias, activation", 0, 2 * size)
        words = ["triton_gemm", recipe, "" if bias is None else activation, "e5m2" if of == torch.float8_e5m2 else ""]
        words += [f"{batch} of" if batch else "", "" if deterministic else "atomic", "sum of parts" if finish else ""]
        needs = [] if finish else ["mma", "fp8_mma"] if of in FP8 else ["mma"]
        narrow = flipped and arch.startswith("gfx")  # AMD transposes operands in registers and reads them in 64 bits
        needs += [*([] if narrow else ["wide_loads"]), *(["wide_stores"] if deterministic else [])]
        name = " ".join([*(word for word in words if word), f"{m}x{n}x{k}"])
        return Specimen(name, made, plain if bias is not None else (), tuple(needs))

    bf16, wide = torch.bfloat16, torch.float32
    listed = [
        specimen("rowwise", 65536, 512, 512),
        specimen("tensorwise", 65536, 512, 512),
        specimen("blockwise", 65536, 512, 512),
        specimen("bf16", 65536, 512, 512, of=bf16),
        specimen("rowwise", 65536, 512, 512, activation="silu"),
        specimen("rowwise", 262144, 512, 512),
        specimen("rowwise", 16384, 1024, 1024),
        specimen("rowwise", 4096, 512, 512),
        specimen("rowwise", 1024, 512, 512),
        specimen("rowwise", 262144, 64, 256),
        specimen("tensorwise", 4096, 512, 512),
        specimen("blockwise", 4096, 512, 512),
        specimen("bf16", 4096, 512, 512, of=bf16),
        specimen("rowwise", 1024, 256, 192, batch=24),
        specimen("rowwise", 512, 512, 65536, out=wide),
        specimen("rowwise", 512, 512, 65536, out=wide, finish=True),
        specimen("rowwise", 512, 512, 65536, out=wide, deterministic=False),
        specimen("blockwise", 512, 512, 65536, out=wide),
        specimen("bf16", 512, 512, 65536, out=wide, of=bf16, flipped=True),
    ]
    if arch != "gfx942":  # it has another format for gradients, which no recipe uses
        listed.append(specimen("tensorwise", 65536, 512, 512, of=torch.float8_e5m2))
    return listed
