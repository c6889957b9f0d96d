"""Reading and writing the graph that Dynamo makes: torch functions and methods, nothing normalised.

`x.relu()`, `torch.relu(x)`, `F.relu(x)` and `F.relu(x, inplace=True)` are four nodes; `op_of` calls them all `relu`.
Sizes may be symbolic. New nodes get their `example_value` from running them on the fake values of their arguments.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from loka_compile import compat

F = torch.nn.functional

_INHERITED = ("nn_module_stack", "stack_trace", "source_fn_stack")
_OPERATORS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "neg": "neg", "pow": "pow", "matmul": "matmul",
    "getitem": "getitem", "floordiv": "floor_divide", "mod": "remainder", "eq": "eq", "ne": "ne", "lt": "lt",
    "le": "le", "gt": "gt", "ge": "ge", "and_": "bitwise_and", "or_": "bitwise_or", "invert": "bitwise_not",
}  # fmt: skip
_IN_PLACE = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "floordiv", "mod")
}
"""`x += y` and the others, and what they are when nothing is written to."""
_ALIASES = {"multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "expit": "sigmoid",
            "clip": "clamp", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "negative": "neg",
            "__getitem__": "getitem"}  # fmt: skip

VIEWS = {
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand",
    "expand_as", "broadcast_to", "getitem", "select", "narrow", "split", "chunk", "unbind", "tensor_split",
    "contiguous", "detach", "movedim", "view_as", "reshape_as", "to", "float", "type_as", "mT", "T", "dropout",
}  # fmt: skip
"""What may give its argument's memory back under another shape."""


def _names() -> dict[Any, str]:
    known: dict[Any, str] = {}
    for module in (torch.special, F, torch):
        for name, function in vars(module).items():
            if callable(function) and not name.startswith("_") and not isinstance(function, type):
                known[function] = _ALIASES.get(name, name)
    for name, meaning in _OPERATORS.items():
        known[getattr(operator, name)] = meaning
    for written, pure in _IN_PLACE.items():
        known[written] = known[pure]
    return known


_NAMES = _names()


def op_of(node: Any) -> str:
    """The operation's plain name, in-place or not; "" for inputs, outputs and what has none."""
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method":
        name = node.target.rstrip("_") if not node.target.startswith("__") else node.target  # type: ignore[union-attr]
        return _ALIASES.get(name, name)  # type: ignore[no-any-return]
    if node.op != "call_function":
        return ""
    if node.target is getattr and isinstance(node.args[1], str):  # x.T
        return node.args[1]
    name = _NAMES.get(node.target, "")
    return name.removesuffix("_")


def arg(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def value(node: Any) -> Any:
    """What Dynamo saw there: a fake tensor, a symbol, a tuple; anything but a node is itself."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def shape(node: fx.Node) -> tuple[Any, ...]:
    """Sizes: numbers, and symbols where they may change."""
    return tuple(map(_number, value(node).shape))


def _number(size: Any) -> Any:
    """A symbolic size that is a number after all."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


def rank(node: fx.Node) -> int:
    return value(node).dim()  # type: ignore[no-any-return]


def flips(node: Any) -> bool:
    """A transpose of the last two dimensions: mT, or transpose by their numbers."""
    if op_of(node) not in ("mT", "transpose") or not node.args or not is_tensor(node.args[0]):
        return False
    dims, given = rank(node.args[0]), (arg(node, 1, "dim0"), arg(node, 2, "dim1"))
    if op_of(node) == "mT" or dims < 2:
        return dims >= 2
    return all(isinstance(dim, int) for dim in given) and {dim % dims for dim in given} == {dims - 2, dims - 1}


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, for all sizes; adds no guard."""
    return compat.guard_free(a == b)


def same_sizes(a: Iterable[Any], b: Iterable[Any]) -> bool:
    a, b = tuple(a), tuple(b)
    return len(a) == len(b) and all(map(same, a, b))


def numel(sizes: Iterable[Any]) -> int:
    """Elements for the inputs at hand; adds no guard."""
    total = 1
    for size in sizes:
        total *= compat.concrete(size)
    return total


# ---------------------------------------------------------------- writing


def emit(before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call in front of `before`: of a function, or of a method where the target is a name."""
    graph = before.graph
    with graph.inserting_before(before):
        call = graph.call_method if isinstance(target, str) else graph.call_function
        node = call(target, args, kwargs)
    node.meta = {name: before.meta[name] for name in _INHERITED if name in before.meta}
    node.meta["example_value"] = _infer(node)
    return node


def _infer(node: fx.Node) -> Any:
    """The call on stand-ins of one fake mode: Dynamo's inputs have another one than what it computed from them."""
    values = [value(each) for each in node.all_input_nodes if is_tensor(each)]
    with compat.tracing_fakes(values[:1]):
        stands = {each: _stand_in(value(each)) for each in node.all_input_nodes}
        args, kwargs = map_arg(node.args, stands.__getitem__), map_arg(node.kwargs, stands.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)  # type: ignore[arg-type]
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _stand_in(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return type(x)(map(_stand_in, x)) if isinstance(x, list | tuple) else x


def size_arg(before: fx.Node, node: fx.Node, dim: int) -> Any:
    """A size to put into a call: the number, or a node that reads it where it is symbolic."""
    size = shape(node)[dim]
    return size if isinstance(size, int) else emit(before, "size", node, dim)


def replace(old: fx.Node, new: fx.Node) -> fx.Node:
    """Give `old`'s users another tensor of the same values, whose strides may differ, and drop `old`.

    A `view` of it becomes a `reshape`, what wrote to it in place makes a new tensor, and what leaves the graph is
    contiguous as before. Not for what is written (writes.py). Returns the tensor in `old`'s place.
    """
    if any(user.op == "output" for user in _reached(old)):
        new = emit(old, "contiguous", new)
    for user in _reached(old):
        if user.op == "call_method" and user.target == "view" and not isinstance(arg(user, 1, "dtype"), torch.dtype):
            user.target = "reshape"
        if old in user.args[:1] and in_place(user):
            user.target, user.args, user.kwargs = pure(user)
    new.meta = {**old.meta, "example_value": new.meta["example_value"]}
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    return new


def replace_part(last: fx.Node, new: fx.Node, inputs: Sequence[Any]) -> fx.Node:
    """`replace`, and drop what stood between `inputs` and `last` and has no use any more."""
    between, todo = {last}, [last]
    while todo:
        calls = (each for each in todo.pop().all_input_nodes if each.op in ("call_function", "call_method"))
        fresh = [each for each in calls if each not in between and each not in inputs]
        between.update(fresh)
        todo += fresh
    new = replace(last, new)
    drop_dead(new.graph, between.__contains__)
    return new


def drop_dead(graph: fx.Graph, among: Callable[[fx.Node], bool]) -> None:
    """Erase the nodes nobody uses, among those that are known to do nothing else than give a value."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "call_method") and among(node):
            graph.erase_node(node)


def _reached(node: fx.Node) -> list[fx.Node]:
    """The users of a node and of its views."""
    found: dict[fx.Node, None] = {}
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user not in found:
            found[user] = None
            if op_of(user) in VIEWS:
                todo.extend(user.users)
    return list(found)


# ---------------------------------------------------------------- writes in place


@functools.cache
def _inplace_place(target: Any) -> int | None:
    """Which argument of a function is its `inplace`."""
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def in_place(node: fx.Node) -> bool:
    """Whether the call writes to its first argument."""
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if node.op != "call_function":
        return False
    if node.target in _IN_PLACE or node.target is operator.setitem or "out" in node.kwargs:
        return True
    if _NAMES.get(node.target, "").endswith("_"):
        return True
    place = _inplace_place(node.target)
    return place is not None and bool(arg(node, place, "inplace", False))


def pure(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target, arguments and keywords of the same call that writes nothing."""
    args, kwargs, target = tuple(node.args), dict(node.kwargs), node.target
    if not in_place(node):
        return target, args, kwargs
    if node.op == "call_method":
        return target.rstrip("_"), args, kwargs  # type: ignore[union-attr]
    if target in _IN_PLACE:
        return _IN_PLACE[target], args, kwargs
    kwargs.pop("inplace", None)
    place = _inplace_place(target)
    if place is not None:
        return target, args[:place], kwargs
    return getattr(F, op_of(node), None) or getattr(torch, op_of(node)), args, kwargs
