"""CompSkip schedules as plain data: which layers of a stack skip which branches, and which reuse an earlier value.

    CompSkip(layers="blocks.*", skip={"even": ["attention"], "odd": ["pffn"]}, reuse={"odd": ["pool"]})

Kunlun alternates so ("alternate", papers: CompSkip, static and per layer): even layers skip self-attention, odd layers
skip the PFFN and reuse the summary of the layer before. passes/adapt/compskip.py applies a schedule to a graph.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ALTERNATE = "alternate"
"""Kunlun's rule; which modules play its parts is read off the graph (graph/parts.py)."""

Entries = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class CompSkip:
    """A schedule.

    layers: where the repeated layers are, as a path of modules: `*` stands for any one name, the last `*` for the
        layer's number (`blocks.*`, `towers.*.layers.*`).
    skip: which layers -> paths of branches inside a layer that do not run there; their residual input flows on.
    reuse: which layers -> paths of modules inside a layer that give the value of the nearest layer before instead.

    "Which layers" is `all`, `even`, `odd`, numbers (`3`, `0,4`) or a slice as in Python (`2:`, `1::3`), by the numbers
    in the modules' paths. Branches may have `*` too: `sources.*.attention`. Raises ValueError on anything else.
    """

    layers: str
    skip: Mapping[str, Iterable[str]] | Entries = ()
    reuse: Mapping[str, Iterable[str]] | Entries = ()

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str) or "*" not in self.layers.split("."):
            raise ValueError(
                f"layers: expected a path of modules with * for the layer's number, as blocks.*; got {self.layers!r}"
            )
        for name in ("skip", "reuse"):
            object.__setattr__(self, name, _entries(name, getattr(self, name)))
        if not (self.skip or self.reuse):
            raise ValueError("the schedule skips nothing and reuses nothing; give skip, reuse, or both")
        skipped = {(which, path) for which, paths in self.entries("skip") for path in paths}
        for which, paths in self.entries("reuse"):
            for path in paths:
                if (which, path) in skipped:
                    raise ValueError(f"{path} ({which}) is both skipped and reused; it can be one of the two")

    def entries(self, name: str) -> Entries:
        """`skip` or `reuse` as pairs (which layers, paths), the form __post_init__ brought it to."""
        found: Entries = getattr(self, name)
        return found

    @classmethod
    def of(cls, value: Any) -> CompSkip | str | None:
        """From what a person writes: None, `alternate`, a CompSkip, a mapping of its fields, or JSON text of one."""
        if value is None or value == ALTERNATE or isinstance(value, cls):
            return value
        if isinstance(value, str):
            if not value.lstrip().startswith("{"):
                hint = nearest(value, [ALTERNATE])
                raise ValueError(f"expected {ALTERNATE!r}, a schedule or None; got {value!r}{hint}")
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"expected a schedule as JSON, {error}") from error
        if not isinstance(value, Mapping):
            raise ValueError(f"expected {ALTERNATE!r}, a schedule or None; got {value!r}")
        fields = ("layers", "skip", "reuse")
        for name in value:
            if name not in fields:
                raise ValueError(f"a schedule has no {name!r}{nearest(name, fields)}; it has {', '.join(fields)}")
        if "layers" not in value:
            raise ValueError('a schedule needs "layers", such as "layers": "blocks.*"')
        return cls(**value)

    def as_dict(self) -> dict[str, Any]:
        """`CompSkip.of(schedule.as_dict()) == schedule`; so does its text, which is JSON."""
        parts = {name: {which: list(paths) for which, paths in getattr(self, name)} for name in ("skip", "reuse")}
        return {"layers": self.layers, **{name: part for name, part in parts.items() if part}}

    def __str__(self) -> str:
        return json.dumps(self.as_dict())


def chosen(which: str, number: int) -> bool:
    """Whether `which` ("even", "2,5", "1::3") means the layer of this number."""
    words = {"all": "::", "even": "::2", "odd": "1::2"}
    for part in words.get(which, which).split(","):
        if ":" not in part:
            if number == int(part):
                return True
            continue
        start, stop, step = (int(text) if text.strip() else None for text in (part + ":").split(":")[:3])
        if number in range(start or 0, number + 1 if stop is None else stop, 1 if step is None else step):
            return True
    return False


def pattern_of(layers: str, branch: str = "") -> re.Pattern[str]:
    """Matches whole paths of modules; groups: what stands before the layer's number, the number, what stands after."""
    names = layers.split(".")
    at = len(names) - 1 - names[::-1].index("*")
    before = "".join(f"{name_pattern(name)}\\." for name in names[:at])
    after = "".join(f"\\.{name_pattern(name)}" for name in [*names[at + 1 :], *filter(None, branch.split("."))])
    return re.compile(f"({before})([0-9]+)({after})")


def nearest(name: Any, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.0)
    return f" (nearest: {close[0]!r})" if close else ""


def name_pattern(name: str) -> str:
    """A regular expression of one name of a path, in which `*` stands for anything."""
    return "[^.]+" if name == "*" else re.escape(name).replace(r"\*", "[^.]*")


_WHICH = re.compile(r"\s*(all|even|odd|[0-9,:\s]*[0-9:][0-9,:\s]*)\s*")


def _entries(name: str, value: Any) -> Entries:
    entries = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(entries, tuple | list):
        raise ValueError(f"{name}: expected which layers -> paths of branches; got {value!r}")
    return tuple(_entry(name, *entry) for entry in entries)


def _entry(name: str, which: Any, paths: Any) -> tuple[str, tuple[str, ...]]:
    which = str(which) if isinstance(which, int) else which
    try:
        valid = isinstance(which, str) and bool(_WHICH.fullmatch(which))
        valid = valid and any(chosen(which, number) for number in range(1000))
    except ValueError:  # "1,", a step of 0
        valid = False
    if not valid:
        raise ValueError(
            f"{name}: expected all, even, odd, numbers such as 0,3 or a slice such as 1::2; got {which!r}"
            + nearest(which, ("all", "even", "odd"))
        )
    if isinstance(paths, str):
        raise ValueError(f"{name}[{which!r}]: expected a list of paths; write [{paths!r}]")
    paths = tuple(paths) if isinstance(paths, tuple | list) else ()
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{name}[{which!r}]: expected a list of paths of modules inside a layer; got {paths!r}")
    return which, paths
