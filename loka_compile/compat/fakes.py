"""Fake tensors, and sizes that are symbols."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch._subclasses import FakeTensor
from torch.utils._pytree import tree_leaves

UNKNOWN = 8192
"""A size that only the data decide, as Inductor guesses it (unbacked_symint_fallback)."""


def fake_mode_of(values: Sequence[Any]) -> Any | None:
    """The FakeTensorMode the values belong to, if any."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(values))


@contextlib.contextmanager
def tracing_fakes(values: Sequence[Any]) -> Iterator[None]:
    """Around make_fx on these fake values: composite operators need the Python dispatcher for symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    with fake_mode_of(values) or contextlib.nullcontext(), enable_python_dispatcher():
        yield


@contextlib.contextmanager
def running_fakes(values: Sequence[Any]) -> Iterator[None]:
    """Around torch functions on fake values of a Dynamo graph: under the mode they were made in, which is no longer
    that of the compilation; composite operators need the Python dispatcher for symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    fakes = [value for value in values if is_fake(value)]
    with fakes[0].fake_mode if fakes else contextlib.nullcontext(), enable_python_dispatcher():
        yield


def is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)


def stands_for_others(value: torch.Tensor) -> bool:
    """Whether a tensor's values are not what lies in memory: all zeros (a gradient that autograd knows to be nothing),
    or what lies there negated or conjugated. A trace computes with the values, and has no input for them."""
    return value._is_zerotensor() or value.is_neg() or value.is_conj()


def guard_free(value: Any) -> bool:
    """Whether a possibly symbolic condition is known to be true, without adding a guard."""
    if isinstance(value, bool):
        return value
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(value))


def concrete(size: Any) -> Any:
    """The value a symbolic size has for the inputs at hand, without adding a guard; anything else as it is. A symbol
    whose value the data decide (an unbacked one) counts as UNKNOWN (ShapeEnv.backed_var_to_val, seen with torch 2.13).
    """
    if not isinstance(size, torch.SymInt):
        return size
    if has_value(size):
        return int(size.node.hint)
    known = size.node.expr.xreplace(size.node.shape_env.backed_var_to_val)
    return int(known.xreplace(dict.fromkeys(known.free_symbols, UNKNOWN)))


def has_value(size: Any) -> bool:
    """Whether a size has a value for the inputs at hand: an unbacked symbol has none."""
    return not isinstance(size, torch.SymInt) or size.node.hint is not None


def hint_of(size: sympy.Expr, inputs: Sequence[Any]) -> int:
    """The value of an expression in the symbols of a graph's inputs, for the inputs at hand, without adding a guard
    (ShapeEnv.backed_var_to_val, seen with torch 2.13)."""
    return int(size if size.is_number else size.xreplace(_shape_env(inputs).backed_var_to_val))


def guard_sizes(inputs: Sequence[Any], *conditions: sympy.Basic) -> None:
    """Let Dynamo compile the graph of these inputs again where one of the conditions, true here, no longer holds.

    ShapeEnv.evaluate_expr (seen with torch 2.13), as Inductor's own guards on sizes.
    """
    for condition in conditions:
        if condition.free_symbols:
            _shape_env(inputs).evaluate_expr(condition)


def _shape_env(inputs: Sequence[Any]) -> Any:
    sizes = (size for value in inputs for size in (value.shape if isinstance(value, torch.Tensor) else (value,)))
    return next(size.node.shape_env for size in sizes if isinstance(size, torch.SymInt))


def in_one_mode(values: Sequence[Any], like: Sequence[Any] = ()) -> list[Any]:
    """The values as fake ones of one mode, that of `like`, without gradients; those that share memory still do.

    Dynamo's inputs and what it computed from them may belong to two modes, which no operator takes together.
    """
    mode = next((value.fake_mode for value in (*like, *values) if is_fake(value)), None)
    bases: dict[int, Any] = {}

    def other(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if is_fake(value) and value.fake_mode is mode:
            return value.detach()
        if value.layout is not torch.strided or hides_its_memory(value):
            return value
        storage = value.untyped_storage()
        with mode or contextlib.nullcontext():
            if storage._cdata not in bases:
                size = storage.nbytes() // value.element_size()
                bases[storage._cdata] = torch.empty(size, dtype=value.dtype, device=value.device)
            base = bases[storage._cdata]
            base = base if base.dtype == value.dtype else base.view(value.dtype)
            return base.as_strided(value.shape, value.stride(), value.storage_offset())

    return [other(value) for value in values]


def hides_its_memory(value: torch.Tensor) -> bool:
    """A tensor whose storage is not where its values are: a subclass around others (DTensor), a nested one."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return value.is_nested or is_traceable_wrapper_subclass(value)


def has_fresh_symbols(value: Any, before: Sequence[Any]) -> bool:
    """Whether its sizes have symbols that the data decide (unbacked ones) and that nothing before it has."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    def of(each: Any) -> set[Any]:
        leaves = tree_leaves(each)
        return {s for x in leaves if isinstance(x, torch.Tensor | torch.SymInt) for s in free_unbacked_symbols(x)}

    return bool(of(value) - of(list(before)))
