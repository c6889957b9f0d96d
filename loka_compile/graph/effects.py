"""What nodes of a Dynamo graph do besides giving a value: writing into tensors, changing state, drawing numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection

import torch
from torch import fx
from torch.nn import functional as F

_IN_PLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift, operator.setitem,
}  # fmt: skip

_LAYOUT_METHODS = {
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "movedim",
    "swapaxes", "t", "view_as", "reshape_as", "detach", "alias",
}  # fmt: skip
_VIEW_METHODS = {
    "expand", "expand_as", "chunk", "split", "unbind", "narrow", "select", "diagonal", "unfold", "as_strided",
}  # fmt: skip
_LAYOUT = {
    torch.reshape, torch.flatten, torch.unflatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze,
    torch.movedim, torch.swapaxes,
}  # fmt: skip
_VIEWS = {operator.getitem, getattr, torch.chunk, torch.split, torch.unbind, torch.narrow, torch.select, torch.diagonal}

DROPOUT = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
}  # fmt: skip


def is_layout(node: fx.Node) -> bool:
    """The same values in another order or shape."""
    if node.op == "call_method":
        return node.target in _LAYOUT_METHODS
    return node.op == "call_function" and node.target in _LAYOUT


def root(node: fx.Node) -> fx.Node:
    """The node whose memory this one may share: behind views, and behind operators that write in place."""
    while node.op in ("call_method", "call_function") and node.args and isinstance(node.args[0], fx.Node):
        view = node.target in _VIEW_METHODS if node.op == "call_method" else node.target in _VIEWS
        if not (view or is_layout(node) or writes_in_place(node)):
            break
        node = node.args[0]
    return node


def writes_in_place(node: fx.Node) -> bool:
    """It writes into its first argument."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    if node.op == "call_method":
        return in_place or name == "__setitem__"
    if node.op != "call_function":
        return False
    return in_place or node.target in _IN_PLACE or node.kwargs.get("inplace") is True


def effect(node: fx.Node, inside: Collection[fx.Node]) -> str:
    """What leaving `node` out would change besides its value, for those outside of `inside`; empty for nothing."""
    if node.op == "call_module":
        return f"{node.name} calls a module that was not traced ({node.target})"
    if writes_in_place(node) and isinstance(node.args[0], fx.Node) and root(node.args[0]) not in inside:
        return f"{node.name} writes into {root(node.args[0]).name}"
    if node.op == "call_function":
        statistics = _argument(node, 1, "running_mean")
        if node.target is F.batch_norm and _argument(node, 5, "training") and statistics is not None:
            return f"{node.name} writes the running statistics {statistics}"
        if isinstance(node.kwargs.get("out"), fx.Node):
            return f"{node.name} writes into {node.kwargs['out']}"
        if not writes_in_place(node) and node.is_impure(impure_random=False):
            return f"{node.name} has side effects ({_name(node.target)})"
    return ""


def drops(node: fx.Node) -> bool:
    """Dropout that is on."""
    if node.op != "call_function":
        return False
    if node.target is F.scaled_dot_product_attention:
        return bool(_argument(node, 4, "dropout_p"))
    return node.target in DROPOUT and bool(_argument(node, 1, "p", 0.5)) and bool(_argument(node, 2, "training", True))


def _argument(node: fx.Node, place: int, name: str, default: object = None) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _name(target: Callable[..., object] | str) -> str:
    return getattr(target, "__name__", str(target))
