"""The gradient of a bias beside the product for its weight's gradient: both read the same gradient."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

from loka_compile.graph.nodes import FLIPS, VIEWS, past_views, sums_rows
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward

aten = torch.ops.aten

WRITTEN: set[Any] = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.clone.default,
    getitem,
}
"""Operators whose result is in memory, whatever reads it."""


def sum_beside(gemm: fx.Node, from_memory: bool = False) -> fx.Node | None:
    """The sum over rows of the gradient G that this product reads as G^T, or None.

    A raised gradient of a norm or an activation sums itself, so it gives None. from_memory: only if G is in memory in
    any case; Inductor can sum any other G while it computes it.
    """
    flip = gemm.all_input_nodes[0]
    if flip.target not in FLIPS or flip.meta["val"].dim() != 2:
        return None
    grad = flip.all_input_nodes[0]
    while grad.target in VIEWS:
        grad = grad.all_input_nodes[0]
    if NormQuantizeBackward.made(grad) is not None:
        return None
    if from_memory and not (grad.op == "placeholder" or grad.target in WRITTEN):
        return None
    return next((node for node in past_views(grad) if sums_rows(node)), None)
