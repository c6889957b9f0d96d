"""Two reports side by side: which sites came, went or are decided otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loka_compile.report import document
from loka_compile.report.errors import ReportError
from loka_compile.report.texts import Texts

_CHOICES = ("recipe", "provider", "runs_as", "outcome", "shape", "dtype")
_NUMBERS = ("mere", "sqnr_db", "time_before_us", "time_after_us")


def single(reports: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A comparison is its two sides."""
    return [each for report in reports for each in ([report["a"], report["b"]] if "a" in report else [report])]


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """A report of two reports."""
    for each in (a, b):
        if each["kind"] == "comparison":
            raise ReportError(f"{each['title']} is a comparison already: compare two reports of one thing each")
    titles = _titles(a, b)
    made = document.new("comparison", " against ".join(titles), Texts())
    return made | {"a": a, "b": b, "names": titles, "changes": changes(a, b)}


def _titles(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Unlike, by the first thing that tells them apart: two commits write a report of one name."""
    more = (
        lambda each: "",
        lambda each: (each["verdict"] or {}).get("target", ""),
        lambda each: f"loka {each['made'].get('loka', '')}, torch {each['made'].get('torch', '')}",
        lambda each: each["made"].get("when", ""),
    )
    for said in more:
        found = [f"{each['title']} ({said(each)})" if said(each) else each["title"] for each in (a, b)]
        if found[0] != found[1]:
            return found
    return [f"{a['title']} (first)", f"{b['title']} (second)"]


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
        known, other = _said(old, a["kind"], b["kind"]), _said(new, b["kind"], a["kind"])
        both = [name for name in known if name in other and known[name] != other[name]]
        choices = [f"{name}: {old[name] or '–'} → {new[name] or '–'}" for name in both if name in _CHOICES]
        numbers = [name for name in both if name in _NUMBERS]
        found.append(
            [key, here, there, "changed" if choices else "renumbered" if numbers else "same", choices or numbers]
        )
    return found


def _said(site: Mapping[str, Any], kind: str, other: str) -> dict[str, Any]:
    """What a report of that kind says of a site, where another kind is beside it: a plan does not know what runs, nor a
    profile what is chosen, and neither is a difference."""
    said = {name: site[name] for name in (*_CHOICES, *_NUMBERS)}
    if kind == other:
        return said
    unknown: tuple[str, ...] = tuple(name for name in _NUMBERS if said[name] is None)
    if kind == "plan":
        unknown += ("runs_as",)
    elif kind == "profile":
        unknown += ("recipe", "provider", "runs_as", "outcome")
    if said["outcome"] == "planned":
        said["outcome"] = "lowered"
    return {name: value for name, value in said.items() if name not in unknown}


def _places(report: Mapping[str, Any]) -> dict[str, int]:
    """Where a site stands, by its key and, where the key comes again, the graph it is in."""
    places: dict[str, int] = {}
    for place, site in enumerate(report["sites"]):
        key = site["key"]
        if key in places:
            key = f"{key} in {', '.join(site['graphs'])}"
        places.setdefault(key, place)
    return places
