"""The fields of an op's declaration as the op's arguments: its schema, and values from fields to arguments and back.

A field may be a dataclass itself; its own fields then stand in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_origin, get_type_hints

import torch
from torch import fx
from typing_extensions import TypeVar  # typing's takes no default before Python 3.13

T = TypeVar("T", default=fx.Node)
"""A tensor: a Tensor where an op runs, an fx.Node where a pass reads a graph."""
_TYPES = {
    T: "Tensor",
    T | None: "Tensor?",
    bool: "bool",
    int: "SymInt",
    float: "float",
    str: "str",
    torch.dtype: "ScalarType",
}


def schema(kind: Any) -> str:
    """The op's schema in the syntax of torch.library."""
    listed = []
    for field, hint in arguments(kind):
        default = "" if field.default is MISSING else f"={_default(field.default)}"
        listed.append(f"{_TYPES[hint]} {field.name}{default}")
    values = "Tensor" if kind.values is None else f"({', '.join('Tensor' for _ in kind.values._fields)})"
    return f"({', '.join(listed)}) -> {values}"


def _default(value: Any) -> str:
    """A default value in that syntax; strings are quoted."""
    return f'"{value}"' if isinstance(value, str) else str(value)


@functools.cache
def arguments(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """The op's arguments as fields with their types; a field that is a dataclass is replaced by its own fields."""
    found: list[tuple[Field[Any], Any]] = []
    for field, hint in _own(kind):
        found += arguments(part) if (part := _part(hint)) else [(field, hint)]
    return tuple(found)


@functools.cache
def _own(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """The class's own fields with their types."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in fields(kind))


def _part(hint: Any) -> Any:
    """The dataclass that a field's type is, or None."""
    kind = get_origin(hint) or hint  # Epilogue of Epilogue[T]
    return kind if is_dataclass(kind) else None


@functools.cache
def _parts(kind: Any) -> Mapping[str, Any]:
    """Fields that are dataclasses, by name. Asked at every call of an op, so the answer is kept."""
    return {field.name: part for field, hint in _own(kind) if (part := _part(hint))}


def flat(call: Any) -> Iterator[Any]:
    """The values of all fields, those of a part in its place."""
    for field in fields(call):
        value = getattr(call, field.name)
        if is_dataclass(value):
            yield from flat(value)
        else:
            yield value


def placed(kind: Any, given: Iterator[Any]) -> Any:
    """An instance of `kind` from the next arguments in the op's order, its parts included."""
    parts = _parts(kind)
    names = [field.name for field, _ in _own(kind)]
    return kind(*[placed(parts[name], given) if name in parts else next(given) for name in names])


def filled(kind: Any, given: Mapping[str, Any]) -> Any:
    """An instance of `kind` from values by name, its parts included."""
    parts = _parts(kind)
    own = {field.name: given[field.name] for field, _ in _own(kind) if field.name in given}
    return kind(**own, **{name: filled(part, given) for name, part in parts.items()})
