"""Whether data is a report: what schema.json asks, and that every number which names a place names one that is there.

The part of JSON schema that schema.json uses is read here, so that a report is checked wherever it is read, and
reading one needs no library. (Tests hold this against jsonschema.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import chain
from typing import Any

from loka_compile.report.errors import ReportError

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list | tuple),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool) and _fits(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and _fits(value),
}
_COLUMNS = ("target", "module", "type", "bytes", "line", "site", "phase", "made", "inputs", "origins", "kernels")


def check(report: Any, name: str) -> None:
    """Raises ReportError that says where in `name` what was expected, and what came."""
    kind = report.get("kind") if isinstance(report, Mapping) else None
    wrong = next(_wrong(report, {"$ref": f"#/$defs/{'two' if kind == 'comparison' else 'one'}"}, "", 0), None)
    wrong = wrong or next(_lost(report), None)
    if wrong:
        raise ReportError(f"{name} is damaged: {wrong}: make it anew")


def _fits(value: float) -> bool:
    """Into a float, and into JSON."""
    return -sys.float_info.max <= value <= sys.float_info.max


@cache
def _definitions() -> dict[str, Any]:
    text = (resources.files("loka_compile.report") / "schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["$defs"]
    return found


def _wrong(value: Any, schema: Mapping[str, Any], at: str, texts: int) -> Iterator[str]:
    """What the schema has against a value. texts: how many `strings` the object around it has."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name == "text" and type(value) is int and value >= texts:
            yield f"{at or 'it'} has text {value} of {texts}"
        schema = _definitions()[name]
    if "oneOf" in schema:
        found = [next(_wrong(value, each, at, texts), "") for each in schema["oneOf"]]
        if all(found):
            yield found[-1]
        return
    wanted = schema.get("type", ())
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(_TYPES[each](value) for each in wanted):
        yield f"{at or 'it'}: expected {' or '.join(wanted)}, got {_short(value)}"
        return
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        yield f"{at}: expected {schema['const']!r}, got {_short(value)}"
    if "enum" in schema and not any(value == each and type(value) is type(each) for each in schema["enum"]):
        yield f"{at}: expected one of {', '.join(map(str, schema['enum']))}, got {_short(value)}"
    if "minimum" in schema and _TYPES["number"](value) and value < schema["minimum"]:
        yield f"{at}: expected at least {schema['minimum']}, got {_short(value)}"
    if isinstance(value, Mapping):
        yield from _wrong_object(value, schema, at, texts)
    elif isinstance(value, list | tuple):
        yield from _wrong_array(value, schema, at, texts)


def _wrong_object(value: Mapping[str, Any], schema: Mapping[str, Any], at: str, texts: int) -> Iterator[str]:
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{at or 'it'} has no {key!r}"
    own, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    texts = len(value["strings"]) if isinstance(value.get("strings"), list | tuple) else texts
    for key, each in value.items():
        place = f"{at}/{key[:60]}" if at else key[:60]
        if key in own:
            yield from _wrong(each, own[key], place, texts)
        elif others is False:
            yield f"{place} is not known"
        elif isinstance(others, Mapping):
            yield from _wrong(each, others, place, texts)


def _wrong_array(value: Sequence[Any], schema: Mapping[str, Any], at: str, texts: int) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        wanted = schema.get("maxItems", schema.get("minItems"))
        yield f"{at}: expected {wanted} values, got {len(value)}"
        return
    for place, (each, own) in enumerate(zip(value, schema.get("prefixItems", ()), strict=False)):
        yield from _wrong(each, own, f"{at}/{place}", texts)
    own = schema.get("items")
    if own is None or _all_texts(value, own, texts):
        return
    for place, each in enumerate(value):
        yield from _wrong(each, own, f"{at}/{place}", texts)


def _all_texts(value: Sequence[Any], schema: Mapping[str, Any], texts: int) -> bool:
    """Most of a large report are columns of texts' places: they are looked at in one step."""
    return schema == {"$ref": "#/$defs/text"} and all(type(each) is int and -1 <= each < texts for each in value)


def _short(value: Any) -> str:
    text = ascii(value) if not isinstance(value, list | tuple | dict) else f"{type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:59]}…"


# ---------------------------------------------------------------- places


def _lost(report: Mapping[str, Any]) -> Iterator[str]:
    """Places that lead nowhere, in a report that fits the schema."""
    if report["kind"] == "comparison":
        sizes = [len(report[side]["sites"]) for side in "ab"]
        for key, *places in (change[:3] for change in report["changes"]):
            if any(place >= size for place, size in zip(places, sizes, strict=True)) or places == [-1, -1]:
                yield f"changes has {key!r} at sites {places} of {sizes}"
        for side in "ab":
            yield from (f"{side}/{each}" for each in _lost(report[side]))
    for place, graph in enumerate(report["graphs"]):
        for snapshot in graph["snapshots"]:
            for each in _lost_in(snapshot, len(graph["kernels"])):
                yield f"graphs/{place}/{snapshot['name']}: {each}"


def _lost_in(snapshot: Mapping[str, Any], kernels: int) -> Iterator[str]:
    nodes = len(snapshot["names"])
    for name in _COLUMNS:
        if len(snapshot[name]) != nodes:
            yield f"{nodes} nodes, and {len(snapshot[name])} values of {name!r}"
    flat: Callable[[Iterable[Iterable[int]]], Iterator[int]] = chain.from_iterable
    if any(not 0 <= each < nodes for each in flat(snapshot["inputs"])):
        yield f"an input that is none of its {nodes} nodes"
    if any(not -kernels <= each < kernels for each in flat(snapshot["kernels"])):
        yield f"a kernel that is none of {kernels}"
