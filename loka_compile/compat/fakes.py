"""Fake tensors, and sizes that are symbols."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch


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
    from torch._subclasses import FakeTensor

    return isinstance(value, FakeTensor)


def guard_free(value: Any) -> bool:
    """Whether a possibly symbolic condition is known to be true, without adding a guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(value))


def concrete(size: Any) -> Any:
    """The value a symbolic size has for the inputs at hand, without adding a guard; anything else as it is."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


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
