"""Inputs that a graph writes, as the backward has to see them: as they were before.

AOTAutograd's joint graph writes its inputs at the end, or returns what is written behind it into inputs that require
gradients. The partitioner may let the backward compute once more what the forward computed from such an input, to save
memory. The backward then reads what was written. Inductor's gradients are wrong for that, without a word:
`weight.mul_(2)` under no_grad, then `(x * weight).sin()`; or autograd refuses: `(x * 2).sin()`, then
`x.detach().add_(1)` (both seen with torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy


def save_from_before(graph: fx.Graph) -> None:
    """Have the partitioner save what is computed from an input that the graph writes, and not compute it again.

    graph: the joint graph. The partitioner looks at `meta["recompute"]`, as selective checkpoints set it. Its output
    node's `meta["desc"]` says which of its values are written behind it (InputMutationAOTOutput, torch 2.9 to 2.14).
    """
    copy = torch.ops.aten.copy_.default
    written = {write.args[0] for write in graph.find_nodes(op="call_function", target=copy)}
    outputs = graph.output_node().meta.get("desc", ())
    returned = {each.mutated_input for each in outputs if hasattr(each, "mutated_input")}
    for node in graph.find_nodes(op="placeholder"):
        if node in written or node.meta.get("desc", node) in returned:
            for reader in _readers(node):
                if reader.target is not copy or reader.args[0] is not node:
                    reader.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _readers(value: fx.Node) -> Iterator[fx.Node]:
    """Operators that read a value's memory; those of its views in place of the views."""
    for user in value.users:
        if getattr(user.target, "is_view", False):
            yield from _readers(user)
        elif user.op == "call_function" and not isinstance(user.meta.get("val"), torch.SymInt | int):
            yield user
