"""FLOPs of a Dynamo graph, node by node, by the formulas of torch.utils.flop_counter on fake values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from loka_compile import compat
from loka_compile.graph.facts import Reading


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch's table has the CUDA forms only (seen with 2.13).
_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_MORE)


def flops_of(graph: fx.Graph) -> dict[fx.Node, int]:
    """Multiplications and additions of the forward, by node. A symbolic size counts as its value for the inputs at
    hand.

    A node counts 0 if it cannot be run on fake values or torch has no formula for it.
    """
    return {node: _flops(node) for node in graph.nodes if node.op in ("call_function", "call_method")}


def total(reading: Reading, flops: Mapping[fx.Node, int]) -> int:
    """FLOPs of the nodes that something depends on; the others are not run."""
    return sum(flops.get(node, 0) for node in reading.needed())


def _flops(node: fx.Node) -> int:
    operands: list[torch.Tensor] = []

    def value_of(each: fx.Node) -> Any:
        value = each.meta.get("example_value")
        if isinstance(value, torch.Tensor):
            operands.append(value)
        return value

    args, kwargs = map_arg((node.args, node.kwargs), value_of)
    if len(operands) < 2:  # a product has two operands
        return 0
    try:
        with torch.no_grad(), compat.running_fakes(operands), _counter() as mode:
            if node.op == "call_method":
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                node.target(*args, **kwargs)
    except Exception:  # sizes that depend on data, subgraphs
        return 0
    return int(compat.concrete(mode.get_total_flops()))
