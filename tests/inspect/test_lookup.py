"""why(site): a site is found by its key, its module's path, or a part that only one module has."""

from __future__ import annotations

import pytest

from loka_compile.inspect.lookup import rows_of
from loka_compile.inspect.row import Row

KEYS = [
    "bottom.0#0:output",
    "bottom.2#0:output",
    "bottom.2#0:grad_weight",
    "bottom.20#0:output",
    "self#0:output",
    "top.Head#0:output",
    "top.Head#1:output",
    "top.Head#1:output@model.py:7",
]


def row(key: str) -> Row:
    return Row(key, "output", "", "keep", "", "", "kept", None, None, None, None, None, "", "")


def keys(name: str) -> list[str]:
    return [each.key for each in rows_of(name, [row(key) for key in KEYS])]


@pytest.mark.parametrize(
    "name, found",
    [
        ("bottom.2#0:grad_weight", ["bottom.2#0:grad_weight"]),
        ("bottom.2", ["bottom.2#0:output", "bottom.2#0:grad_weight"]),
        ("bottom.2#0", ["bottom.2#0:output", "bottom.2#0:grad_weight"]),
        ("bottom", ["bottom.0#0:output", "bottom.2#0:output", "bottom.2#0:grad_weight", "bottom.20#0:output"]),
        ("self", ["self#0:output"]),
        ("top.Head#1", ["top.Head#1:output", "top.Head#1:output@model.py:7"]),
        ("head", ["top.Head#0:output", "top.Head#1:output", "top.Head#1:output@model.py:7"]),
        ("m.0", ["bottom.0#0:output"]),
        ("grad_weight", ["bottom.2#0:grad_weight"]),
        ("model.py:7", ["top.Head#1:output@model.py:7"]),
    ],
)
def test_what_is_meant(name: str, found: list[str]) -> None:
    assert keys(name) == found


@pytest.mark.parametrize(
    "name, said",
    [
        ("bott", "'bott' is part of 3 modules' names: bottom.0, bottom.2, bottom.20. Say which one"),
        ("output", "'output' is part of 5 modules' names: bottom.0, bottom.2, bottom.20, self, top.Head"),
        ("botom.2", "no site 'botom.2'; the nearest: bottom.2, bottom.20, bottom.0"),
        ("bottom.2#1:output", "no site 'bottom.2#1:output'; the nearest: bottom.2#0:output"),
        ("xyz", "no site 'xyz'; there are bottom.0#0:output, .*, 2 more"),
        ("", "no site ''; there are bottom.0#0:output"),
    ],
)
def test_what_is_not(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        keys(name)


def test_of_nothing() -> None:
    with pytest.raises(ValueError, match="there are none"):
        rows_of("a", [])
