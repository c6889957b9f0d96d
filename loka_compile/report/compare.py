"""Two reports side by side: which sites came, went or are decided otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loka_compile.report import document
from loka_compile.report.errors import ReportError
from loka_compile.report.texts import Texts

_CHOICES = ("recipe", "provider", "runs_as", "outcome", "shape", "dtype")
_NUMBERS = ("mere", "sqnr_db", "time_before_us", "time_after_us")


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """A report of two reports."""
    for each in (a, b):
        if each["kind"] == "comparison":
            raise ReportError(f"{each['title']} is a comparison already: compare two reports of one thing each")
    titles = [a["title"], b["title"]]
    if titles[0] == titles[1]:
        titles = [
            f"{each['title']} ({(each['verdict'] or {}).get('target') or each['made']['when']})" for each in (a, b)
        ]
    made = document.new("comparison", " against ".join(titles), Texts())
    return made | {"a": a, "b": b, "names": titles, "changes": changes(a, b)}


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[list[Any]]:
    """[key, place in A or -1, place in B or -1, only_a | only_b | changed | renumbered | same, what differs]"""
    places = [_places(each) for each in (a, b)]
    found = []
    for key in dict.fromkeys((*places[0], *places[1])):
        here, there = places[0].get(key, -1), places[1].get(key, -1)
        if there < 0 or here < 0:
            found.append([key, here, there, "only_a" if there < 0 else "only_b", []])
            continue
        old, new = a["sites"][here], b["sites"][there]
        choices = [f"{name}: {old[name] or '–'} → {new[name] or '–'}" for name in _CHOICES if old[name] != new[name]]
        numbers = [name for name in _NUMBERS if old[name] != new[name]]
        found.append(
            [key, here, there, "changed" if choices else "renumbered" if numbers else "same", choices or numbers]
        )
    return found


def _places(report: Mapping[str, Any]) -> dict[str, int]:
    """Where a site stands, by its key and, where the key comes again, the graph it is in."""
    places: dict[str, int] = {}
    for place, site in enumerate(report["sites"]):
        key = site["key"]
        if key in places:
            key = f"{key} in {', '.join(site['graphs'])}"
        places.setdefault(key, place)
    return places
