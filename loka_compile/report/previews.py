"""A preview as a part of a report: its sides, kernel by kernel. It comes as the JSON that a preview writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from loka_compile.report.errors import ReportError
from loka_compile.report.texts import Texts, number

_TEXTS = ("phase", "kind", "name", "dtype", "site", "op", "bound_by")
_NUMBERS = ("flops", "bytes", "modelled_us")
_KERNEL: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(("inputs", "outputs"), (list, tuple)),
}


def part_of(body: Any, name: str) -> dict[str, Any]:
    """Checked and made smaller. Raises ReportError on what no preview wrote."""
    wanted = {"model": str, "target": str, "training": bool, "against": str, "sides": (list, tuple), "rates": dict}
    checked(body, wanted, f"{name} is no preview")
    return {
        **{key: body[key] for key in ("model", "target", "training", "against")},
        "memory": body.get("memory", 0),
        "capacity": body.get("capacity"),
        "where": body.get("where", ""),
        "rates": {key: value for key, value in body["rates"].items() if isinstance(value, str | int | float)},
        "sides": [_side(side, name) for side in body["sides"]],
    }


def _side(side: Any, name: str) -> dict[str, Any]:
    checked(
        side,
        {"name": str, "kernels": (list, tuple), "error": str, "notes": (list, tuple)},
        f"{name}: a side is damaged",
    )
    texts = Texts()
    kernels = [_kernel(kernel, f"{name}: a kernel of {side['name']} is damaged", texts) for kernel in side["kernels"]]
    return {
        "name": side["name"],
        "error": side["error"],
        "notes": list(side["notes"]),
        "kernels": kernels,
        "strings": texts.all,
    }


def _kernel(kernel: Any, why: str, texts: Texts) -> dict[str, Any]:
    checked(kernel, _KERNEL, why)
    operands = f"{' '.join(map(str, kernel['inputs'][:4]))} → {' '.join(map(str, kernel['outputs'][:2]))}"
    us = kernel.get("us")
    for key, value in (*((key, kernel[key]) for key in _NUMBERS), ("us", us)):
        if isinstance(value, int | float) and not 0 <= value <= sys.float_info.max:
            raise ReportError(f"{why}: {key!r} is {str(value)[:20]}")
    return {
        "name": texts(kernel["name"]),
        "op": texts(kernel["op"]),
        "site": texts(kernel["site"]),
        "backward": int(kernel["phase"] == "backward"),
        "what": _what(kernel),
        "operands": texts(operands.strip(" →")),
        "flops": kernel["flops"],
        "bytes": kernel["bytes"],
        "us": number(float(kernel["modelled_us"])),
        "measured_us": number(float(us)) if isinstance(us, int | float) else None,
        "bound": texts(kernel["bound_by"]),
        "spills": int(bool(_resources(kernel).get("spills"))),
    }


def _resources(kernel: Mapping[str, Any]) -> Mapping[str, Any]:
    found = kernel.get("resources")
    return found if isinstance(found, Mapping) else {}


def _what(kernel: Mapping[str, Any]) -> str:
    """product8, product16, quantize or other: what its block in a timeline looks like."""
    if kernel["flops"]:
        return "product8" if kernel["dtype"].startswith(("float8", "int8", "uint8")) else "product16"
    shapes = (*kernel["inputs"], *kernel["outputs"])
    return "quantize" if any(str(shape).startswith(("e4m3", "e5m2", "i8", "u8")) for shape in shapes) else "other"


def checked(body: Any, wanted: Mapping[str, Any], why: str) -> None:
    """Raises ReportError unless it is a mapping with values of these types under these names."""
    if not isinstance(body, Mapping):
        raise ReportError(f"{why}: expected an object, got {type(body).__name__}")
    for key, kind in wanted.items():
        if key not in body:
            raise ReportError(f"{why}: it has no {key!r}")
        if not isinstance(body[key], kind):
            raise ReportError(f"{why}: {key!r} is {type(body[key]).__name__}")
