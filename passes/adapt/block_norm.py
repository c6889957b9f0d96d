"""block_norm: RMSNorm over blocks of 256 values, without weights, where there was a LayerNorm or an RMSNorm.

    y = x / sqrt(mean(x^2 over the block) + eps)          x (..., N) as (..., N / block, block)

The statistics of a block fit inside one GEMM tile, so that norm, activation and quantization can run in its epilogue;
nothing is subtracted, and an outlier hurts only its own block (LoKA Mods). Rows up to 256 are one block. Longer ones
are cut into the longest blocks that divide them, of at most 256 and of whole sixteens; the paper leaves that open.
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
"""Where the norm that goes has none of its own."""
OURS = "loka_block_norm"
"""On a norm over blocks."""


@dataclass(frozen=True)
class BlockNorm:
    name: ClassVar[str] = "block_norm"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


def pattern(reading: Reading, node: fx.Node) -> fx.Node | None:
    """A norm that is not in blocks yet: applied twice is applied once."""
    norm = reading.op(node) in ("layer_norm", "rms_norm") and OURS not in node.meta
    return node if norm else None


def check(reading: Reading, node: fx.Node) -> str:
    """Why the norm stays; empty if it goes."""
    shape = reading.arg(node, "normalized_shape")
    if len(shape) != 1 or not isinstance(shape[0], int):
        return f"it normalises over {tuple(shape)}; blocks are of one dimension whose size is known"
    if not block_of(shape[0]):
        return f"N = {shape[0]} has no divisor of at most {BLOCK} that is a multiple of {STEP}"
    return ""


def block_of(n: int) -> int:
    """The length of a block of a row of n values; 0 where there is none."""
    if n <= BLOCK:
        return n
    return next((block for block in range(BLOCK, 0, -STEP) if n % block == 0), 0)


def block_norm(x: torch.Tensor, block: int, eps: float = EPS) -> torch.Tensor:
    """The specification: x (..., N) with N a multiple of `block`."""
    return F.rms_norm(x.unflatten(-1, (-1, block)), (block,), None, eps).flatten(-2)


def rewrite(reading: Reading, node: fx.Node) -> Rewrite:
    block = block_of(reading.arg(node, "normalized_shape")[0])
    eps = reading.arg(node, "eps")
    blocks = emit(reading, node, "unflatten", reading.arg(node, "input"), -1, (-1, block))
    normed = emit(reading, node, F.rms_norm, blocks, (block,), None, EPS if eps is None else eps)
    normed.meta[OURS] = True
    new = replace(reading, node, emit(reading, node, "flatten", normed, -2))
    return Rewrite(module_name(new), f"RMSNorm over blocks of {block}")
