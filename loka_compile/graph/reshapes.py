"""Which nodes are reshapes, and which leading dimensions they leave alone."""

from __future__ import annotations

from torch import fx

from loka_compile.graph.facts import Reading
from loka_compile.graph.sizes import same_sizes

RESHAPES = ("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as")


def is_reshape(reading: Reading, node: fx.Node) -> bool:
    """Whether the node is a reshape, in any spelling."""
    return reading.op(node) in RESHAPES and reading.arg(node, "dtype") is None


def keeps(reading: Reading, node: fx.Node, source: fx.Node, dims: int) -> bool:
    """Whether a reshape leaves the first `dims` dimensions alone."""
    return same_sizes(reading.shape(node)[:dims], reading.shape(source)[:dims])
