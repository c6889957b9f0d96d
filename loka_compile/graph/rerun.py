"""Running a Dynamo graph once more, on inputs of its own, so that nobody notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, fx, nn

from loka_compile.graph.effects import written


def written_inputs(graph: fx.Graph) -> frozenset[int]:
    """Places of the inputs that the graph writes in place, as far as its own nodes tell."""
    changed = written(graph)
    return frozenset(i for i, node in enumerate(graph.find_nodes(op="placeholder")) if node in changed)


def own_inputs(inputs: Sequence[Any], written: Collection[int]) -> list[Any]:
    """The inputs for one more run: parameters, large and hardly ever written, as they are, other tensors copied."""
    shared = lambda i, x: isinstance(x, nn.Parameter) and i not in written  # noqa: E731
    return [x if shared(i, x) or not isinstance(x, Tensor) else x.clone() for i, x in enumerate(inputs)]


def reason_against(inputs: Sequence[Any], written: Collection[int]) -> str:
    """Why copies cannot stand in for the inputs; empty if they can."""
    if not written:
        return ""
    memory = [x.untyped_storage().data_ptr() if isinstance(x, Tensor) else None for x in inputs]
    times = Counter(memory)
    if any(memory[i] and times[memory[i]] > 1 for i in written):
        return "it writes into an input that shares its memory with another one, which copies do not"
    return ""
