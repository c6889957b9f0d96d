"""F.layer_norm and F.rms_norm in Dynamo's graph, as the passes of this folder read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from loka_compile.graph.facts import Reading

NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
RMS_EPS = {torch.float64: torch.finfo(torch.float64).eps}
"""F.rms_norm's eps if none is given: that of the dtype it computes in, which is float32 for all dtypes but float64."""


@dataclass(frozen=True)
class Norm:
    """A norm in the graph.

    nodes: all nodes it is made of; the value of the last one is replaced.
    x: its input. The other fields are arguments of loka::norm_quantize.
    """

    nodes: tuple[fx.Node, ...]
    x: fx.Node
    norm: str = "none"
    shape: tuple[Any, ...] = ()
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    eps: float = 0.0
    block: int = 0
    activation: str = "none"

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def norm_of(reading: Reading, node: fx.Node) -> Norm:
    """The norm that a node computes; its operator is one of NORMS."""
    names = "input", "normalized_shape", "weight", "bias", "eps"
    x, shape, weight, bias, eps = (reading.arg(node, name) for name in names)
    eps = eps if eps is not None else RMS_EPS.get(reading.value(x).dtype, torch.finfo(torch.float32).eps)
    return Norm((node,), x, NORMS[reading.op(node)], tuple(shape), weight, bias, eps)
