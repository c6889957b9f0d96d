"""A report from a file: a plan, a profile, a preview's JSON, or a report's own JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loka_compile.probe.profile import ProfileError, parse_profile
from loka_compile.report import document, previews
from loka_compile.report.check import check
from loka_compile.report.errors import ReportError
from loka_compile.report.texts import Texts
from loka_compile.spec.plan import PlanError, parse_plan

_MARK = b"\xef\xbb\xbf"
"""Of the order of bytes: some editors put it before UTF-8."""
EXPECTED = "expected a plan or a preview (JSON), a profile (safetensors), or a report's JSON"
EXPECTED_TOO = f"{EXPECTED}; on the command line also MODULE:FACTORY, the module as in an import"


def read(path: str | Path) -> dict[str, Any]:
    """Raises ReportError on what cannot be read, or is damaged."""
    name = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ReportError(f"cannot read {name}: {error.strerror or error}; {EXPECTED_TOO}") from error
    start = data[:64].removeprefix(_MARK).lstrip()[:1]
    if start not in (b"{", b"[") or b"\0" in data[:8]:  # not a length that looks like a brace
        return _profile(data, name)
    try:
        text = data.removeprefix(_MARK).decode()
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{name} is not JSON ({error}): {EXPECTED}") from error
    kind = body.get("format") if isinstance(body, dict) else None
    if kind == "loka-plan":
        try:
            return document.of_plan(parse_plan(text, name), Path(path).name)
        except PlanError as error:
            raise ReportError(str(error)) from error
    if kind == document.FORMAT:
        return checked_report(body, name)
    if isinstance(body, list) or "sides" in body:
        return of_previews(body if isinstance(body, list) else [body], name)
    raise ReportError(f"{name} is neither of what is read: {EXPECTED}")


def of_previews(bodies: list[Any], name: str) -> dict[str, Any]:
    if not bodies:
        raise ReportError(f"{name} is empty: {EXPECTED}")
    parts = [previews.part_of(body, name) for body in bodies]
    made = document.new("preview", parts[0]["model"], Texts(), previews=parts)
    check(made, name)
    return made


def _profile(data: bytes, name: str) -> dict[str, Any]:
    try:
        return document.of_profile(parse_profile(data, name), Path(name).name)
    except ProfileError as error:
        raise ReportError(f"{error}; {EXPECTED}") from error


def checked_report(body: dict[str, Any], name: str) -> dict[str, Any]:
    """A report's own data, if it is whole."""
    if body.get("version") != document.VERSION:
        found = body.get("version")
        raise ReportError(f"{name} has report version {found!r}, this loka reads {document.VERSION}: make it anew")
    check(body, name)
    return body
