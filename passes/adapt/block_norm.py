"""block_norm: LayerNorm and RMSNorm become RMSNorm over blocks of up to 256 values, without weights.

    y = x / sqrt(mean(x^2 over the block) + eps)          x (..., N) as (..., N / block, block)

A block's statistics fit inside one GEMM tile, so norm, activation and quantization can run in the GEMM's epilogue. No
mean is subtracted, and an outlier affects its own block only. A row of up to 256 values is one block. A longer one is
cut into the longest blocks that divide it, at most 256 long and a multiple of 16.
Source: LoKA Mods; the paper does not say how rows are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply

BLOCK, STEP = 256, 16
EPS = 1e-5
"""The eps if the norm that is replaced has none."""
OURS = "loka_block_norm"
"""Marks a node as a norm over blocks."""


@dataclass(frozen=True)
class BlockNorm:
    name: ClassVar[str] = "block_norm"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


def pattern(reading: Reading, node: fx.Node) -> fx.Node | None:
    """A norm that is not in blocks yet, so that applying the pass twice is applying it once."""
    norm = reading.op(node) in ("layer_norm", "rms_norm") and OURS not in node.meta
    return node if norm else None


def check(reading: Reading, node: fx.Node) -> str:
    """Why the norm stays; "" if it becomes a block norm."""
    shape = reading.arg(node, "normalized_shape")
    if len(shape) != 1 or not isinstance(shape[0], int):
        return f"it normalises over {tuple(shape)}; blocks are of one dimension whose size is known"
    if not block_of(shape[0]):
        return f"N = {shape[0]} has no divisor of at most {BLOCK} that is a multiple of {STEP}"
    return ""


def block_of(n: int) -> int:
    """The length of a block in a row of n values; 0 if no length fits."""
    if n <= BLOCK:
        return n
    return next((block for block in range(BLOCK, 0, -STEP) if n % block == 0), 0)


def block_norm(x: torch.Tensor, block: int, eps: float = EPS) -> torch.Tensor:
    """The specification of the new norm. x: (..., N), N a multiple of `block`."""
    return F.rms_norm(x.unflatten(-1, (-1, block)), (block,), None, eps).flatten(-2)


def rewrite(reading: Reading, node: fx.Node) -> Rewrite:
    block = block_of(reading.arg(node, "normalized_shape")[0])
    eps = reading.arg(node, "eps")
    blocks = emit(reading, node, "unflatten", reading.arg(node, "input"), -1, (-1, block))
    normed = emit(reading, node, F.rms_norm, blocks, (block,), None, EPS if eps is None else eps)
    normed.meta[OURS] = True
    new = replace(reading, node, emit(reading, node, "flatten", normed, -2))
    return Rewrite(module_name(new), f"RMSNorm over blocks of {block}")
