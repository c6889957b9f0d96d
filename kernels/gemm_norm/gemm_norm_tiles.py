"""The tiles of loka::gemm_norm's kernel: how many columns a tile has and how it walks K, by chip."""

from __future__ import annotations

import triton

from loka_compile.spec.chips import CHIPS

WIDEST = 512
"""The most columns of a tile: a row of at most so many can be seen whole."""


def needs_two(n: int, norm: str, block: int, scaled: bool) -> bool:
    """Whether the op needs two kernels, because no tile can hold what must be seen at once: a whole row, or a block
    whose length is no power of two. scaled: each row gets a scale."""
    if n <= WIDEST and (not block or block == n or triton.next_power_of_2(block) == block):
        return False
    whole = norm in ("rms", "layer") and block in (0, n)
    return scaled or whole or (norm in ("rms", "layer") and block > WIDEST)


def tile_columns(n: int, length: int, whole: bool, normed: bool) -> tuple[int, int, int]:
    """(columns of a block in the tile, blocks of a tile, columns to the next tile). whole: the tile must hold a whole
    row."""
    widest = WIDEST if whole else WIDEST // 2
    if not normed or length == n:
        bn = max(16, min(triton.next_power_of_2(n), widest))
        return bn, 1, bn
    bl = triton.next_power_of_2(length)
    if bl != length:
        return max(bl, 16), 1, length
    bb = max(1, max(16, min(triton.next_power_of_2(n), widest)) // bl)
    return bl, bb, bl * bb


def configuration(
    m: int, bn: int, tiles: int, itemsize: int, pressure: int, arch: str
) -> tuple[int, int, int, int, bool]:
    """(rows of a tile, step along K, warps, stages, swapped), chosen by instructions for each tensor-core operation.

    pressure: registers the epilogue needs besides the tile, from 0 to 2. swapped: compute the transposed tile.
    """
    sms, swap = CHIPS[arch].sms, False
    bk = 128 // itemsize
    if arch in ("sm_90", "sm_100"):
        bm, warps = (64, 8) if bn == 512 else (128, 8) if bn == 256 else (128, 4)
        if arch == "sm_100" and pressure == 2 and bn >= 256:  # other tiles spill
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
