"""The HTML file: the data once as JSON, the scripts and the styles of view/, and nothing that needs a network."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from loka_compile.report.errors import ReportError

STYLES = ("base.css", "table.css", "graph.css", "print.css")
_VIEWS = "base format table plot verdict site sites tree layout overlay panel node graph passes timeline online compare"
SCRIPTS = tuple(f"{name}.js" for name in f"{_VIEWS} words main".split())
"""In the order in which they stand in the page."""


def html(report: dict[str, Any]) -> str:
    """A whole page."""
    try:
        import jinja2
    except ImportError as error:
        raise ReportError("a report needs jinja2: pip install loka-compile[report]") from error
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = made.from_string(_text("page.html"))
    return _writable(
        template.render(
            title=report["title"],
            styles=[_text(name) for name in STYLES],
            scripts=[_text(name) for name in SCRIPTS],
            data=embedded(report),
        )
    )


def as_json(report: dict[str, Any]) -> str:
    return _writable(json.dumps(report, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n")


def _writable(text: str) -> str:
    """Half of a surrogate pair, which JSON may hold and UTF-8 may not, as JSON writes it: \\ud800."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def embedded(report: dict[str, Any]) -> str:
    """JSON that stays inside of a script element, whatever the names in it: no text of it can end one or begin one."""
    text = json.dumps(report, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return (resources.files("loka_compile.report") / "view" / name).read_text(encoding="utf-8")
