"""Reading Dynamo graphs, where one operation has many spellings: operator, function, method."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile.graph.writes import ANY_WRITER

_SPELLINGS: Mapping[str, tuple[Any, ...]] = {
    "add": (operator.add, torch.add, "add"),
    "sub": (operator.sub, torch.sub, torch.subtract, "sub", "subtract"),
    "mul": (operator.mul, torch.mul, torch.multiply, "mul", "multiply"),
    "div": (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"),
    "pow": (operator.pow, torch.pow, "pow"),
    "square": (torch.square, "square"),
    "sqrt": (torch.sqrt, "sqrt"),
    "rsqrt": (torch.rsqrt, "rsqrt"),
    "reciprocal": (torch.reciprocal, "reciprocal"),
    "mean": (torch.mean, "mean"),
    "var": (torch.var, "var"),
    "std": (torch.std, "std"),
    "var_mean": (torch.var_mean,),
    "getitem": (operator.getitem,),
    "cast": ("to", "type", "type_as", "float", "double", "half", "bfloat16"),
    "sigmoid": (torch.sigmoid, F.sigmoid, torch.special.expit, "sigmoid"),
    "relu": (torch.relu, F.relu, "relu"),
    "silu": (F.silu,),
    "gelu": (F.gelu,),
    "hard_swish": (F.hardswish,),
    "leaky_relu": (F.leaky_relu,),
    "unflatten": (torch.unflatten, "unflatten"),
    "flatten": (torch.flatten, "flatten"),
    "norm": (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm),
    "linear": (F.linear,),
    "bmm": (torch.bmm, "bmm"),
    "matmul": (operator.matmul, torch.matmul, torch.mm, torch.addmm, "matmul", "mm", "addmm"),
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}


def called(node: Any) -> str:
    """What a node computes, by one name for all spellings; "" for anything this module does not know."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    in_place = node.kwargs.get("inplace") or "out" in node.kwargs
    return "" if in_place else _NAMES.get(node.target, "")


def value(node: fx.Node) -> Any:
    """The fake tensor of a Dynamo node, None if it has none."""
    return node.meta.get("example_value")


def multiplied(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """(a, b) of a @ b, matrices or batches of them; None for anything else."""
    if called(node) not in ("matmul", "bmm") or len(node.args) != 2 or node.kwargs:
        return None
    tensors = all(isinstance(each, fx.Node) and isinstance(value(each), torch.Tensor) for each in node.args)
    return node.args if tensors else None  # type: ignore[return-value]


def same(a: Any, b: Any) -> bool:
    """Whether two nodes are the same value: one node, or the same operations on the same values. Others, equal."""
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return type(a) is type(b) and bool(a == b)
    if a is b:
        return True
    if not called(a) or called(a) != called(b) or len(a.args) != len(b.args) or a.kwargs.keys() != b.kwargs.keys():
        return False
    if called(a) == "cast" and value(a).dtype != value(b).dtype:
        return False
    pairs = [*zip(a.args, b.args, strict=True), *((a.kwargs[key], b.kwargs[key]) for key in a.kwargs)]
    return all(same(left, right) for left, right in pairs)


def written(node: fx.Node) -> str:
    """What writes to a node's memory in place, as `writes.mark` found it; "" if nothing does.

    An activation in place counts: autograd lets nobody write to the result of an op with several outputs.
    """
    return str(node.meta.get(ANY_WRITER, ""))


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one's value; None if none or several do."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def erase(node: fx.Node) -> None:
    """Take an unused node out, and what only it used. fx's own elimination would take `x.add_(1)` for unused."""
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for each in inputs:
        if not each.users and called(each):
            erase(each)
