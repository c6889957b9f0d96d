"""Which inputs of a Dynamo graph are a model's, and which are what it is called with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from loka_compile import compat
from loka_compile.graph.facts import Reading

OPERANDS = {"linear": "weight", "mm": "mat2", "bmm": "mat2", "matmul": "other", "addmm": "mat2", "baddbmm": "batch2"}
"""The argument of a GEMM that is its weight, where it has one."""


@dataclass(frozen=True)
class Places:
    """parameters: who calls, buffers where a model has no parameters. weights: these, buffers, and `loose` ones, other
    tensors that a GEMM takes where weights stand, as `functional_call` hands them over. data: all other tensors."""

    parameters: tuple[int, ...]
    weights: tuple[int, ...]
    loose: tuple[int, ...]
    data: tuple[int, ...]

    @classmethod
    def of(cls, reading: Reading, inputs: Sequence[Any]) -> Places:
        nodes = reading.graph.find_nodes(op="placeholder")
        tensors = {i: node for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)) if isinstance(x, Tensor)}
        parameters = tuple(i for i in tensors if isinstance(inputs[i], nn.Parameter))
        owned = {i for i, node in tensors.items() if i in parameters or compat.is_parameter_or_buffer(node)}
        others = {i: node for i, node in tensors.items() if i not in owned}
        if not parameters:
            parameters = tuple(owned)
        several = [i for i in others if inputs[i].dim() > 1 and inputs[i].is_floating_point()]
        loose = _weights_among(reading, {i: others[i] for i in several}) if len(several) > 1 else ()
        weights = tuple(i for i in tensors if i in owned or i in loose)
        return cls(parameters, weights, loose, tuple(i for i in tensors if i not in weights))

    def among_weights(self, written: Collection[int]) -> tuple[list[int], list[int]]:
        """Numbers of the weights that the graph writes, and of the loose ones."""
        numbers = list(enumerate(self.weights))
        return [n for n, i in numbers if i in written], [n for n, i in numbers if i in self.loose]


def _weights_among(reading: Reading, inputs: dict[int, fx.Node]) -> tuple[int, ...]:
    """Places of the inputs whose memory a GEMM reads as its weight."""
    read_as_weights: set[int] = set()
    for node, fact in reading.facts.items():
        operand = reading.arg(node, OPERANDS[fact.op]) if fact.op in OPERANDS else None
        if isinstance(operand, fx.Node):
            read_as_weights |= reading.memory(operand)
    return tuple(i for i, node in inputs.items() if reading.memory(node) & read_as_weights)
