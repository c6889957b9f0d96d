"""The parameter behind a GEMM's right operand: `lower` has it quantized once instead of at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from loka_compile.graph.nodes import unflip
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.post_grad._padding import PAD


@dataclass(frozen=True)
class Weight:
    """A parameter that a right operand (K, N) was made of, quantized along K.

    transposed: the operand is the transpose of the parameter.
    dtype, scaling: of the quantization; scaling "none" is a plain cast.
    more: columns of zeros the operand has beyond the parameter's.
    """

    node: fx.Node
    transposed: bool
    dtype: torch.dtype
    scaling: str
    more: int


def weight_behind(b: fx.Node) -> Weight | None:
    """The parameter behind a right operand in few bits, past its quantization or cast, padding and transposes. None if
    there is no parameter."""
    q, flipped = unflip(b)
    quantize = Quantize.made(q, "q")
    if quantize is not None:
        call = Quantize.of(quantize)
        base, dtype, scaling = call.x, call.dtype, call.scaling
    elif b.meta["val"].dtype in (torch.bfloat16, torch.float16) and q.op == "call_function" and q.args:
        base, dtype, scaling = q if q.target is PAD else q.all_input_nodes[0], q.meta["val"].dtype, "none"
    else:
        return None
    more = 0
    if base.target is PAD:
        _, columns, _, rows = cast(tuple[int, int, int, int], base.args[1])
        base = base.all_input_nodes[0]
        more = rows if flipped else columns
    base, flipped_before = unflip(base)
    if base.op != "placeholder":
        return None
    return Weight(base, flipped != flipped_before, dtype, scaling, more)
