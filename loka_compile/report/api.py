"""loka.report: what was compiled, or planned, or previewed, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loka_compile.preview.report import Preview
from loka_compile.probe.profile import Profile
from loka_compile.report import document, files
from loka_compile.report.compare import compared
from loka_compile.report.page import as_json, html
from loka_compile.spec.plan import Plan


def report(compiled: Any, path: str | Path, *, against: Any = None, title: str = "") -> Path:
    """Write a page that shows `compiled`; open it in a browser. A path that ends in .json gets the data alone.

    compiled: what `torch.compile(..., backend="loka")` returned and has run; or a Plan, a Profile, a Preview, or the
    path of a file of one of these or of a report's JSON. against: another one of them, to be compared with it.

    Raises ValueError where there is nothing to report, ReportError (a ValueError) for a file that is damaged.
    """
    made = document_of(compiled, title)
    if against is not None:
        made = compared(document_of(against), made)
    path = Path(path)
    path.write_text(as_json(made) if path.suffix.lower() == ".json" else html(made), encoding="utf-8")
    return path


def document_of(what: Any, title: str = "") -> dict[str, Any]:
    """The data of a report (schema.json)."""
    if isinstance(what, dict) and what.get("format") == document.FORMAT:
        return files.checked_report(what, "the report")
    if isinstance(what, str | Path):
        return files.read(what)
    if isinstance(what, Plan):
        return document.of_plan(what, title or "a plan")
    if isinstance(what, Profile):
        return document.of_profile(what, title or "a profile")
    if isinstance(what, Preview):
        return files.of_previews([what.to_json()], title or what.model)
    return document.of_compiled(what, title)
