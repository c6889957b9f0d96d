"""Finding the sites that a person means, by a key, a module's path or a part of either."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from loka_compile.inspect.row import Row

SHOWN = 6
"""Names that an error lists before it counts."""


def rows_of(name: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of the sites that `name` means: a site's key, the path of a module with all that is inside of it, a
    GEMM of a module (`fc#0`), or any part of a key that only one module has.

    Raises ValueError where that is no site, or those of several modules; the error lists the nearest names.
    """
    exact = tuple(row for row in rows if row.key == name)
    inside = tuple(row for row in rows if row.key.startswith((f"{name}#", f"{name}.", f"{name}:", f"{name}@")))
    if exact or (name and inside):
        return exact or inside
    having = tuple(row for row in rows if name and name.lower() in row.key.lower())
    modules = dict.fromkeys(row.key.partition("#")[0] for row in having)
    if len(modules) == 1:
        return having
    if having:
        raise ValueError(f"{name!r} is part of {len(modules)} modules' names: {_few(list(modules))}. Say which one")
    raise ValueError(f"no site {name!r}; {_nearest(name, rows)}")


def _nearest(name: str, rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(row.key for row in rows))
    if not keys:
        return "there are none"
    names = list(dict.fromkeys([*(key.partition("#")[0] for key in keys), *keys]))
    close = difflib.get_close_matches(name, keys if "#" in name else names, 3, 0.3)
    return f"the nearest: {', '.join(close)}" if close else f"there are {_few(keys)}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join([*names[:SHOWN], *([f"{more} more"] if more > 0 else [])])
