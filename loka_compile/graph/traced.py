"""A torch function as a graph of ATen operators: traced once for each kind of call, and then only run on fake tensors.

A model has many equal sites, and each is quantized, multiplied and scaled by the same few lines. Tracing them takes
milliseconds a time, ten times what their operators take on fake tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from loka_compile import compat

MOST = 1000
"""Graphs that are remembered; those that nobody asked for the longest go first."""

OPERATOR = type(torch.ops.aten.mul.Tensor)

_known: dict[Hashable, fx.Graph] = {}


class _Unknown(Exception):
    """A value of which it is not known when two of them are the same."""


def traced(
    function: Callable[..., Any], args: Sequence[Any], values: Sequence[Any]
) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """The graph of function(*args), to be copied and not changed, and what its nodes give. values: what stands for each
    node among the arguments, fake tensors; they are the graph's inputs."""
    try:
        given = tuple(fx.Node if isinstance(each, fx.Node) else _same(each) for each in args)
        key = _same(function), given, _forms(values), _state()
    except _Unknown:
        return _with_values(_trace(function, args, values))
    if (known := _known.pop(key, None)) is not None:  # one step, as graphs are compiled in several threads
        _known[key] = known  # the latest
        return known, _run(known, values)
    graph, found = _with_values(_trace(function, args, values))
    if len(_known) >= MOST:
        _known.pop(next(iter(_known)), None)
    _known[key] = graph
    return graph, found


def _trace(function: Callable[..., Any], args: Sequence[Any], values: Sequence[Any]) -> fx.Graph:
    def on_tensors(*tensors: Any) -> Any:
        given = iter(tensors)
        made = function(*(next(given) if isinstance(arg, fx.Node) else arg for arg in args))
        return tuple(made) if isinstance(made, tuple) else made  # a named one would be a node of its own

    with compat.tracing_fakes(values):
        module = make_fx(on_tensors, decomposition_table=compat.decomposition_table())(*values)
    for node in module.graph.find_nodes(op="get_attr"):
        name = getattr(function, "__name__", function)
        raise TypeError(f"{name} makes a tensor constant ({node.target}); pass it as an argument")
    return module.graph


def _with_values(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """The graph and what its nodes give, which it does not keep itself."""
    return graph, {node: node.meta.pop("val") for node in graph.nodes if node.op != "output"}


def _run(graph: fx.Graph, values: Sequence[Any]) -> dict[fx.Node, Any]:
    """The results of a known graph's nodes for these values."""
    given, found = iter(values), dict[fx.Node, Any]()
    with compat.tracing_fakes(values), torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                found[node] = next(given)
            elif node.op == "call_function":
                args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*args, **kwargs)
    return found


# ---------------------------------------------------------------- when two calls are one


def _forms(values: Sequence[Any]) -> Hashable:
    """How the tensors lie, and which of them are one. Sizes that may change are traced each time."""
    places = {id(each): place for place, each in reversed([*enumerate(values)])}
    return tuple((places[id(each)], _form(each)) for each in values)


def _form(value: Any) -> Hashable:
    if not (compat.is_fake(value) and value.layout == torch.strided and not value.is_complex()):
        raise _Unknown
    if compat.stands_for_others(value):  # its trace is of those, and says nothing of another tensor
        raise _Unknown
    form = *value.shape, *value.stride(), value.storage_offset()
    if any(isinstance(each, torch.SymInt) for each in form):
        raise _Unknown
    return form, value.dtype, value.device, value.requires_grad


def _state() -> Hashable:
    """The global state that also decides which operators a function calls."""
    return compat.region_here(), torch.are_deterministic_algorithms_enabled()


def _same(value: Any) -> Hashable:
    """Equal for what is the same to a trace: plain data by what it is, a function by its code and what it holds."""
    if value is None or isinstance(value, bool | int | str | torch.dtype | torch.device | type | OPERATOR):
        return type(value), value
    if isinstance(value, float):
        return float, value.hex()
    if isinstance(value, tuple | list):
        return type(value), *map(_same, value)
    if isinstance(value, functools.partial):
        named = tuple((name, _same(each)) for name, each in sorted(value.keywords.items()))
        return functools.partial, _same(value.func), _same(value.args), named
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, type | ModuleType | None):
        return BuiltinFunctionType, value  # torch.t, and no method of an object
    if isinstance(value, FunctionType):
        held = tuple(each.cell_contents for each in value.__closure__ or ())
        given = value.__defaults__, tuple((value.__kwdefaults__ or {}).items())
        return value.__module__, value.__qualname__, value.__code__, _same(held), _same(given)
    raise _Unknown
