"""block_norm: RMSNorm over blocks of 256 values, without weights, where there was a LayerNorm or an RMSNorm.

    y = x / sqrt(mean(x^2 over the block) + eps)          x (..., N) as (..., N / block, block)

The statistics of a block fit inside one GEMM tile, so that norm, activation and quantization can run in its epilogue;
nothing is subtracted, and an outlier hurts only its own block (LoKA Mods). Rows up to 256 are one block. Longer ones
are cut into the longest blocks that divide them, of at most 256 and of whole sixteens; the paper leaves that open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import emit
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply

BLOCK, STEP = 256, 16
EPS = 1e-5
"""Where the norm that goes has none of its own."""
LAYER_NORM, RMS_NORM = torch.nn.functional.layer_norm, torch.nn.functional.rms_norm
EPS_ARG = {LAYER_NORM: 4, torch.layer_norm: 4, RMS_NORM: 3, torch.rms_norm: 3}
"""The norms, as Dynamo writes them, and which argument is their eps."""


@dataclass(frozen=True)
class BlockNorm:
    name: ClassVar[str] = "block_norm"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        return apply(graph, graph.nodes, pattern, check, _rewrite)


def pattern(node: fx.Node) -> fx.Node | None:
    """A norm that is not in blocks yet."""
    norm = node.op == "call_function" and node.target in EPS_ARG and not _is_ours(node)
    return node if norm else None


def check(node: fx.Node) -> str:
    """Why the norm stays; empty if it goes."""
    shape = _shape(node)
    if len(shape) != 1 or not isinstance(shape[0], int):
        return f"it normalises over {shape}; blocks are of one dimension whose size is known"
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
    return torch.nn.functional.rms_norm(x.unflatten(-1, (-1, block)), (block,), None, eps).flatten(-2)


def _shape(node: fx.Node) -> tuple[Any, ...]:
    shape = node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"]
    return tuple(shape)  # type: ignore[arg-type]


def _is_ours(node: fx.Node) -> bool:
    """Applied twice is applied once."""
    return bool(node.meta.get("loka_block_norm"))


def _rewrite(node: fx.Node) -> Rewrite:
    block = block_of(_shape(node)[0])
    place = EPS_ARG[node.target]  # type: ignore[index]
    eps = node.args[place] if len(node.args) > place else node.kwargs.get("eps", EPS)
    blocks = emit(node, "unflatten", node.args[0], -1, (-1, block))
    normed = emit(node, RMS_NORM, blocks, (block,), None, EPS if eps is None else eps)
    normed.meta["loka_block_norm"] = True
    new = emit(node, "flatten", normed, -2)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return Rewrite(module_name(new), f"RMSNorm over blocks of {block}")
