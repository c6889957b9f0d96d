"""Facts about ATen operators: plain names, arguments by name, which are pointwise, which draw, what they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from loka_compile.compat import AtenCall
from loka_compile.graph.sizes import same_sizes

ALIASES = {
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "special_expit": "sigmoid",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "negative": "neg",
    "type_as": "to",
    "moveaxis": "movedim",
    "linalg_matmul": "matmul",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
}
"""Other names of ATen operators -> the name used here."""

UNTAGGED = {
    "hardswish",
    "log_sigmoid",
    "where",
    "masked_fill",
    "floor_divide",
    "to",
    "contiguous",
    "rsub",
    "square",
    "clone",
    "bitwise_and",
    "bitwise_or",
    "div",
}
"""Pointwise operators that lack PyTorch's mark, torch.Tag.pointwise, in some overload (seen with torch 2.13)."""

STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
"""Operators that write running statistics although their schema does not say so, with the argument that switches this
on (aten::batch_norm, seen with torch 2.13)."""

_SIZES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)
"""Distinct primes, so that a dimension of the result is recognized by its size."""

IDENTITY = "identity"
"""The name for a node that returns its argument and calls no operator."""

HELPERS = {"lift_fresh"}
"""Calls that only wrap a number."""


def name_of(call: AtenCall) -> str:
    """`relu` for aten.relu and aten.relu_; operators of other libraries keep the library's name: `loka::gdpa`."""
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
    """Whether each value of the result follows from the arguments' values at that place."""
    return torch.Tag.pointwise in getattr(call.op, "tags", ()) or name_of(call) in UNTAGGED | HELPERS


def draws(call: AtenCall) -> bool:
    """Whether the call draws from a random generator. Dropout that is off does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.op, "tags", ()):
        return False
    arguments = given(call)
    off = arguments.get("p") == 0 or arguments.get("dropout_p") == 0
    return not off and bool(arguments.get("train", arguments.get("training", True)))


def written_by(call: AtenCall) -> list[torch.Tensor]:
    """The tensors that the call writes: those its schema names, and running statistics."""
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


def permutation(call: AtenCall) -> tuple[int, ...]:
    """The order in which a view has its argument's dimensions; () for other calls.

    The operator itself (transpose, permute, mT, ...) is run on a tensor of distinct sizes, so no list of views is
    needed.
    """
    x, out, rest = next(iter(call.args), None), call.out, (*call.args[1:], *call.kwargs.values())
    if not (isinstance(x, torch.Tensor) and isinstance(out, torch.Tensor) and 1 < x.dim() == out.dim() <= len(_SIZES)):
        return ()
    returns = call.op._schema.returns if hasattr(call.op, "_schema") else ()
    plain = all(each.alias_info for each in returns) and all(isinstance(each, int) for each in tree_leaves(rest))
    if x.is_complex() or not plain or name_of(call) == "detach":  # a detached view has another gradient
        return ()
    sizes = _SIZES[: x.dim()]
    try:
        found = call.op(torch.empty(sizes, device="meta"), *call.args[1:], **call.kwargs)
    except (RuntimeError, IndexError):  # a view to fixed sizes does not fit
        return ()
    if sorted(found.shape) != sorted(sizes):
        return ()
    order = tuple(sizes.index(size) for size in found.shape)
    return order if same_sizes(out.shape, [x.shape[dim] for dim in order]) else ()


def whole(calls: Sequence[AtenCall]) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of the one operator that these calls of a node make up; ("", {}) if they do not."""
    calls = [call for call in calls if name_of(call) not in HELPERS]
    names = [name_of(call) for call in calls]
    if names == ["reciprocal", "mul"] and not isinstance(given(calls[1])["other"], torch.Tensor):
        return "div", {"self": given(calls[1])["other"], "other": given(calls[0])["self"]}  # 1 / x
    if names[-1:] == ["embedding_bag"]:  # torch turns bags of one length into offsets first
        flat = next((call for call in calls if name_of(call) == "reshape"), None)
        bag = given(calls[-1])
        if flat is not None:
            bag = {**bag, "indices": given(flat)["self"], "offsets": None}
        return "embedding_bag", bag
    if names == ["linalg_vector_norm", "clamp_min", "expand_as", "div"]:
        norm, least, quotient = given(calls[0]), given(calls[1]), given(calls[3])
        if quotient["self"] is norm["self"] and norm["keepdim"] and norm["dtype"] is None:
            return "normalize", {"self": norm["self"], "p": norm["ord"], "dim": norm["dim"], "eps": least["min"]}
    if len(calls) != 1:
        return "", {}
    bound = given(calls[0])
    if names[0] == "rsub":
        return "sub", {**bound, "self": bound["other"], "other": bound["self"]}
    return names[0], bound


def is_foreign(call: AtenCall) -> bool:
    """Whether the operator belongs to another library or runs graphs, so that only its schema is known."""
    return getattr(call.op, "namespace", "") not in ("aten", "prim", "loka")


def without_write(call: AtenCall) -> Any | None:
    """The operator that returns what this pointwise one writes into its first argument; None if there is none."""
    schema = getattr(call.op, "_schema", None)
    if schema is None or not is_pointwise(call) or torch.Tag.inplace_view in call.op.tags:
        return None
    writes = [each.alias_info is not None and each.alias_info.is_write for each in schema.arguments]
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
    if writes != [True, *[False] * (len(writes) - 1)] or not schema.name.endswith("_") or packet is None:
        return None
    return getattr(packet, schema.overload_name or "default", None)
