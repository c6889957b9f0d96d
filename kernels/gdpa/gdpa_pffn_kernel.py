"""The Triton kernel of loka::pffn: both norms, all heads' attention and both residuals for a few tokens a program.

The second norm needs the squares of a whole token, known only when its last head is done. So the results of all heads
stay in registers until then, which limits a token's width. A head's keys and values are resident.
Source: Kunlun (arXiv 2602.10016).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels.gdpa.gdpa_activation import activated
from loka_compile.kernels.gdpa.gdpa_kernel import RESIDENT, WIDEST, strides, tile
from loka_compile.kernels.launch import Launch, Specimen, moved
from loka_compile.kernels.norms import HALVES

MOST_VALUES = 256
"""The most values of a token, each head's width rounded up to a power of two."""
MOST_HEADS = 8
"""The most heads: the kernel unrolls the loop over them."""


@triton.jit
def pffn_kernel(
    x, k, v, out, k_b, k_h, k_t, v_b, v_h, v_t, rows, keys, scale, outer,
    HEADS: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, EPS_OUT: tl.constexpr, ACTIVATION: tl.constexpr,
    INSIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """BM tokens of one sequence.

    x, out: (sequences, rows, HEADS * D), contiguous.
    k_*, v_*: strides by sequence, head and key.
    """
    W: tl.constexpr = HEADS * D
    tiles = tl.cdiv(rows, BM)
    sequence, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BM
    x, out = x + sequence * rows * W, out + sequence * rows * W
    k, v = k + sequence * k_b, v + sequence * v_b

    whole = tile(x, first, rows, W, W, BM, BW).to(tl.float32)
    mean = tl.sum(whole, 1) * (1.0 / W)
    centred = tl.where((tl.arange(0, BW) < W)[None, :], whole - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) * (1.0 / W) + EPS)

    there = (tl.arange(0, BD) < D)[None, :]
    squares = tl.zeros((BM,), tl.float32)
    zs: tl.tuple = ()
    for head in tl.static_range(HEADS):
        n = (tile(x + head * D, first, rows, W, D, BM, BD).to(tl.float32) - mean[:, None]) * rstd[:, None]
        n = tl.where(there, n, 0.0)
        key, value = tile(k + head * k_h, 0, keys, k_t, D, BN, BD), tile(v + head * v_h, 0, keys, v_t, D, BN, BD)
        scores = tl.dot(n.to(key.dtype), key.T)
        if INSIDE:
            scores *= scale
        p = activated(scores, ACTIVATION)
        z = tl.dot(p.to(value.dtype), value) * outer + n
        squares += tl.sum(z * z, 1)
        zs = zs + (z,)  # noqa: RUF005  # Triton has no starred tuples
    rstd = tl.rsqrt(squares * (1.0 / W) + EPS_OUT)
    # stored in eighths: else Triton stores AMD's matrix layout in 64 bits a thread
    row, column = tl.arange(0, BM)[:, None, None], tl.arange(0, BD // 8)[None, :, None] * 8 + tl.arange(0, 8)
    at = tl.cast(first, tl.int64) * W + row * W + column
    mask = (row < rows - first) & (column < D)
    for head in tl.static_range(HEADS):
        z = tl.reshape(zs[head], (BM, BD // 8, 8)) * rstd[:, None, None]
        y = z + tl.load(x + head * D + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + head * D + at, y.to(out.dtype.element_ty), mask=mask)


def reasons_against(x: Tensor, k: Tensor) -> list[str]:
    """Why the kernel does not take these operands; [] if it does. x: tokens, in any layout; k: (B, H, S, D)."""
    _, heads, keys, d = k.shape
    reasons = []
    if x.dtype not in HALVES:
        reasons.append(f"the kernel multiplies bfloat16 and float16, not {x.dtype}")
    if keys > RESIDENT:
        reasons.append(f"{keys} keys; the kernel holds {RESIDENT} at most")
    if d > WIDEST or heads > MOST_HEADS or heads * triton.next_power_of_2(d) > MOST_VALUES:
        reasons.append(f"{heads} heads of {d}: the kernel keeps {MOST_HEADS} heads and {MOST_VALUES} values at most")
    return reasons


def launch(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    activation: str,
    scale: float,
    scale_inside: bool,
    eps: float,
    eps_out: float,
    arch: str,
) -> Launch:
    """The launch for x and out contiguous, k and v with contiguous rows, and operands that reasons_against takes."""
    (b, rows, w), (_, heads, keys, d) = x.shape, k.shape
    bn, bd = (max(16, triton.next_power_of_2(size)) for size in (keys, d))
    bm, warps = configuration(heads * bd, arch)
    args = {"x": x, "k": k, "v": v, "out": out, **strides(k=k, v=v), "rows": rows, "keys": keys}
    args |= {"scale": float(scale), "outer": 1.0 if scale_inside else float(scale)}
    constants = {"HEADS": heads, "D": d, "EPS": eps, "EPS_OUT": eps_out, "ACTIVATION": activation}
    constants |= {"INSIDE": scale_inside, "BM": bm, "BN": bn, "BD": bd, "BW": triton.next_power_of_2(w)}
    programs = b * triton.cdiv(rows, bm)
    return Launch(pffn_kernel, (programs,), args, constants, warps, 1, 4 * b * rows * keys * w, moved(x, k, v, out))


def configuration(values: int, arch: str) -> tuple[int, int]:
    """(BM, warps) for tokens of so many values."""
    if values > 128:
        return 32, 4 if arch.startswith("gfx") else 8
    return 64, 2 if values <= 32 and arch.startswith("gfx") else 4


def specimens(arch: str) -> list[Specimen]:
    """Kunlun's proportions, against a norm, the attention in one kernel, and a norm with both residuals."""

    def specimen(heads: int, d: int, keys: int, activation: str, b: int = 1024, rows: int = 512) -> Specimen:
        x = torch.empty(b, rows, heads * d, dtype=torch.bfloat16, device="meta")
        k = torch.empty(b, heads, keys, d, dtype=torch.bfloat16, device="meta")
        made = launch(x, k, k, x, activation, 1.0, False, 1e-5, 1e-5, arch)
        unfused = (("norm", 0, moved(x, x)), ("gdpa", made.flops, moved(x, x, k, k)), ("norm", 0, moved(x, x, x, x)))
        name = f"pffn {activation} {b}x{heads}x{rows}x{keys}x{d}"
        return Specimen(name, made, unfused, ("mma", "wide_loads", "wide_stores"))

    return [
        specimen(1, 32, 32, "gelu"),
        specimen(2, 32, 64, "gelu"),
        specimen(4, 64, 128, "gelu"),
        specimen(2, 128, 128, "silu"),
    ]
