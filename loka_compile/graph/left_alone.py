"""Dynamo graphs that loka hands to Inductor as they are, and why: they cannot be read, run once more, or lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loka_compile import compat
from loka_compile.graph.facts import Reading


def reason_to_leave(reading: Reading, inputs: Sequence[Any], training: bool, online: bool) -> str:
    """Why a Dynamo graph with these inputs goes to Inductor as written; "" if loka may work on it.

    online: the plan is learned from calls, so the code is compiled again on the way.
    """
    for node, value in zip(reading.graph.find_nodes(op="placeholder"), inputs, strict=False):
        if isinstance(value, list | tuple | dict):
            return f"{node.name} is a {type(value).__name__} (from compiled autograd); loka expects tensors"
        if isinstance(value, torch.SymInt) and not compat.has_value(value):
            return f"the size {node.name} has no value (it is unbacked), and without one nothing can be measured"
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or compat.hides_its_memory(value):
                kind = type(value).__name__ if value.layout is torch.strided else str(value.layout)
                return f"{node.name} is a {kind} tensor, whose memory cannot be told"
            if not all(map(compat.has_value, value.shape)):
                return f"{node.name} has a size without a value (it is unbacked): {tuple(value.shape)}"
    if held := next(filter(reading.is_written, reading.graph.find_nodes(op="get_attr")), None):
        return (
            f"it writes {held.target}, which it holds and is not handed, as the step of an optimizer does, "
            "so each run of it to try or to time it would be one more"
        )
    if effect := next(filter(compat.has_effect, reading.graph.nodes), None):
        return (
            f"{effect.name} has an effect beside its result, so each run of it to try or to time it would be one more"
        )
    if online and compat.is_ahead_of_time():
        return "it is compiled ahead of time, where there are no calls to learn a plan from; give a profile or a plan"
    if online and training and compat.is_compiled_autograd():
        return (
            "compiled autograd would trace and compile the backward again when a learned plan changes the code; "
            "give a profile or a plan"
        )
    if online and (size := compat.unknown_sizes(reading.graph)):
        return f"the size {size} does not follow from a call's inputs, so a plan cannot be learned; give one"
    if online and torch.are_deterministic_algorithms_enabled():
        return (
            "deterministic algorithms are asked for, but a learned plan depends on measured times and earlier calls; "
            "give a profile or a plan"
        )
    for node, fact in reading.facts.items() if training else ():
        if fact.op in ("embedding", "embedding_bag") and fact.given.get("sparse"):
            return f"the gradient of {node.name}'s table is sparse"
    return ""
