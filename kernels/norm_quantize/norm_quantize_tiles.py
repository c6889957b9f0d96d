"""Tiles of the kernels that go over whole rows: how many rows a program has, and how many programs sum over rows."""

from __future__ import annotations

import triton

PARTS = 256
"""The most programs that sum over rows. Each leaves a part for the second stage; about two fit on an SM."""


def lanes_of(arch: str) -> int:
    """Threads of a warp."""
    return 64 if arch.startswith("gfx") else 32


def tile(rows: int, width: int, arch: str, values: int, least: int) -> tuple[int, int]:
    """(rows, warps) of a program whose threads hold about `values` values each.

    width: of a row, a power of 2.
    least: the fewest warps.
    """
    lanes = lanes_of(arch)
    warps = max(least, min(16, triton.next_power_of_2(triton.cdiv(width, lanes * values))))
    return max(1, min(warps * lanes * values // width, triton.next_power_of_2(max(rows, 1)))), warps
