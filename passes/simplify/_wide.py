"""A node that reads a replicated tensor, and the answers that a rule of _rowwise.py can give about it.

The main argument of the node is a replicated (wide) tensor. Its first `lead.wide` dimensions were the first
`lead.narrow` dimensions of the narrow tensor; all others are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from loka_compile.graph.facts import Reading

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

WORK = {"linear", "matmul", "mm", "bmm", "layer_norm", "rms_norm", "embedding_bag", "scaled_dot_product_attention"}
"""Operations that are worth moving before a replication. Others only move along with them."""


@dataclass(frozen=True)
class Lead:
    """How many leading dimensions the replication has in its input (narrow) and in its result (wide)."""

    narrow: int
    wide: int


@dataclass(frozen=True)
class Mixed:
    """Why a call has no narrow form: this tensor is not replicated, so nothing that reads it is work done twice."""

    tensor: fx.Node

    def __str__(self) -> str:
        return f"{self.tensor} differs from row to row"


@dataclass(frozen=True)
class Wide:
    """A node with a replicated tensor among its arguments.

    base(x): the narrow tensor behind x; None if x is not replicated in the same way.
    """

    reading: Reading
    node: fx.Node
    lead: Lead
    base: Callable[[Any], fx.Node | None]

    @property
    def name(self) -> str:
        return self.reading.op(self.node)

    @property
    def main(self) -> Any:
        """The argument that a rule expects to be replicated."""
        if self.name == "getitem":
            return self.node.args[0]
        if self.name in ("embedding", "embedding_bag"):
            return self.arg("indices")
        return next(iter(self.reading.args(self.node)), None)

    @property
    def narrow(self) -> fx.Node:
        found = self.base(self.main)
        assert found is not None
        return found

    @property
    def beyond(self) -> int:
        """How many dimensions of the main argument the replication leaves alone."""
        return self.reading.rank(self.main) - self.lead.wide

    def arg(self, name: str) -> Any:
        return self.reading.arg(self.node, name)

    def from_end(self, dim: Any, of: int) -> int | None:
        """A dimension of a tensor of rank `of`, counted from the end, where wide and narrow agree. None for a
        replicated one."""
        if not isinstance(dim, int) or (dim % of if of else 0) < self.lead.wide:
            return None
        return dim % of - of


Narrow = Call | str | Mixed
"""The call on narrow tensors; a reason why there is none; or the tensor that is not replicated."""
LEADING = "it is along a replicated dimension"
