"""One check for each kind of option value: it returns the value as kept, or says what was expected and what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any


class OptionsError(ValueError):
    """An unknown option, or a bad value of a known one."""


class FrozenDict(dict[Any, Any]):
    """A dict that stays as it was made; it still pickles, copies and prints as one."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("options are frozen; make new ones with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def expected(name: str, what: str, got: Any) -> str:
    return f"{name}: expected {what}; got {got!r}"


def nearest(name: Any, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.0)
    return f" (nearest: {close[0]!r})" if close else ""


def one_of(name: str, value: Any, valid: Iterable[str]) -> str:
    if isinstance(value, str) and value in valid:
        return value
    raise OptionsError(expected(name, f"one of {', '.join(valid)}", value) + nearest(value, valid))


def names(name: str, value: Any, valid: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise OptionsError(expected(name, f"a tuple of names; write ({value!r},)", value))
    if not isinstance(value, tuple | list):
        raise OptionsError(expected(name, "a tuple of names", value))
    if value and not valid:
        raise OptionsError(expected(name, "(), as this version has none yet", value))
    for item in value:
        one_of(name, item, valid)
    if len(set(value)) < len(value):
        raise OptionsError(expected(name, "each name once", value))
    return tuple(value)


def number(name: str, value: Any) -> float:
    # Written so that NaN fails it. bool is a Real, but never meant as one.
    if isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0:
        return float(value)
    raise OptionsError(expected(name, "a number of at least 0", value))


def count(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise OptionsError(expected(name, "a whole number of at least 0", value))


def switch(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise OptionsError(expected(name, "True or False", value))


def mapping(name: str, what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionsError(expected(name, what, value))
    return value
