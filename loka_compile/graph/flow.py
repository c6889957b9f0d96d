"""Where gradients flow. A tensor that no output is differentiated by has no gradient; merged into a larger tensor it
would get a gradient of zeros."""

from __future__ import annotations

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from loka_compile.graph.facts import Reading


def differentiated(reading: Reading) -> set[fx.Node]:
    """The nodes that a gradient reaches from the outputs, if the inputs require one."""
    found: set[fx.Node] = set()
    for node in reversed(reading.graph.nodes):
        if node.op != "output" and not (node in found and _lets_through(reading, node)):
            continue
        found |= reading.sources(node)
    return found


def _lets_through(reading: Reading, node: fx.Node) -> bool:
    """Whether a gradient passes the node: it is real or complex, not detached, and gradients are recorded there."""
    fact = reading.facts[node]
    if fact.writes or fact.reason:
        return True
    if fact.op == "detach" or (fact.region is not None and not fact.region.grad):
        return False
    values = [each for each in tree_leaves(fact.value) if isinstance(each, torch.Tensor)]
    return any(each.is_floating_point() or each.is_complex() for each in values)
