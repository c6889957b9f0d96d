"""What is known of ATen operators: plain names, arguments by name, which are pointwise, which draw, what they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from loka_compile.compat import AtenCall

ALIASES = {
    "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "special_expit": "sigmoid",
    "clip": "clamp", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose",
    "negative": "neg", "type_as": "to", "moveaxis": "movedim", "linalg_matmul": "matmul",
    "special_softmax": "softmax", "special_log_softmax": "log_softmax", "__and__": "bitwise_and",
    "__or__": "bitwise_or",
}  # fmt: skip
"""Operators of ATen that are others by another name."""

UNTAGGED = {"hardswish", "log_sigmoid", "where", "masked_fill", "floor_divide", "to", "contiguous", "rsub", "square",
            "clone", "bitwise_and", "bitwise_or", "div"}  # fmt: skip
"""Pointwise operators of which an overload lacks PyTorch's own mark, torch.Tag.pointwise (seen with torch 2.13)."""

STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
"""Operators that write their running statistics without a word of it in their schema, and the argument that lets them
(aten::batch_norm, seen with torch 2.13)."""

HELPERS = {"lift_fresh"}
"""Calls that only wrap a number."""


def name_of(call: AtenCall) -> str:
    """`relu` for aten.relu and aten.relu_; operators of other libraries with the library's name, `loka::gdpa`."""
    full = call.op._schema.name if hasattr(call.op, "_schema") else f"higher_order::{call.op}"
    namespace, _, name = full.partition("::")
    if namespace != "aten":
        return full
    name = name if name.endswith("__") else name.rstrip("_")
    return ALIASES.get(name, name)


def given(call: AtenCall) -> dict[str, Any]:
    """The call's arguments by name, defaults included."""
    schema = getattr(call.op, "_schema", None)
    if schema is None:
        return {}
    bound = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(call.args):
            bound[argument.name] = call.args[place]
        else:
            bound[argument.name] = call.kwargs.get(argument.name, argument.default_value)
    return bound


def is_pointwise(call: AtenCall) -> bool:
    return torch.Tag.pointwise in getattr(call.op, "tags", ()) or name_of(call) in UNTAGGED | HELPERS


def draws(call: AtenCall) -> bool:
    """It takes numbers from a random generator. Dropout that is off takes none."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.op, "tags", ()):
        return False
    arguments = given(call)
    off = arguments.get("p") == 0 or arguments.get("dropout_p") == 0
    return not off and bool(arguments.get("train", arguments.get("training", True)))


def written_by(call: AtenCall) -> list[torch.Tensor]:
    """The tensors that the operator's schema says it writes, and running statistics, of which it does not say it."""
    schema = getattr(call.op, "_schema", None)
    if name_of(call) in STATISTICS:
        bound = given(call)
        statistics = [bound["running_mean"], bound["running_var"]]
        on = bound[STATISTICS[name_of(call)]]
        return [each for each in statistics if on and isinstance(each, torch.Tensor)]
    if schema is None or not schema.is_mutable:
        return []
    bound, found = given(call), []
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [x for x in tree_leaves(bound[argument.name]) if isinstance(x, torch.Tensor)]
    return found


def whole(calls: Sequence[AtenCall]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of what these calls of one node do together; "" where they are no one operator."""
    calls = [call for call in calls if name_of(call) not in HELPERS]
    names = [name_of(call) for call in calls]
    if names == ["reciprocal", "mul"] and not isinstance(given(calls[1])["other"], torch.Tensor):
        return "div", {"self": given(calls[1])["other"], "other": given(calls[0])["self"]}  # 1 / x
    if names[-1:] == ["embedding_bag"]:  # bags of one length are made offsets first
        flat = next((call for call in calls if name_of(call) == "reshape"), None)
        bag = given(calls[-1])
        if flat is not None:
            bag = {**bag, "indices": given(flat)["self"], "offsets": None}
        return "embedding_bag", bag
    if len(calls) != 1:
        return "", {}
    bound = given(calls[0])
    if names[0] == "rsub":
        return "sub", {**bound, "self": bound["other"], "other": bound["self"]}
    return names[0], bound
