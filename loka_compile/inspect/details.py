"""The text below the table: first what was refused at most sites, said once; then site by site the rest.

A candidate may be refused for several reasons, which are joined by semicolons (`a; b`). They are compared one by one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loka_compile.inspect.row import Row

MOST = 0.6
"""A reason that this share of the sites have is said once too, with those that do not have it."""
SHOWN = 4
"""Sites that are named before they are counted."""

Refusal = tuple[str, str]
"""A candidate and one reason against it."""


def details(rows: Sequence[Row], width: int) -> list[str]:
    """All that is known of these sites."""
    return [*_by_site(rows, {}, width), *_absent(rows, width)]


def shared_first(rows: Sequence[Row], width: int) -> list[str]:
    """The refusals that most sites share, each said once; then site by site what differs."""
    said = _shared(rows)
    lines = []
    by_sites: dict[tuple[str, ...], dict[Refusal, None]] = {}
    for refusal, held_by in said.items():
        by_sites.setdefault(tuple(held_by), {})[refusal] = None
    judged = _judged(rows)
    for keys, refusals in sorted(by_sites.items(), key=lambda each: -len(each[0])):
        but = [key for key in judged if key not in keys]
        names = ", ".join([*but[:SHOWN], *([f"{len(but) - SHOWN} more"] if len(but) > SHOWN else [])])
        where = f"{len(keys)} of {len(judged)} sites, all but {names}" if but else f"all {len(judged)} sites"
        lines.append(wrapped(f"  refused at {where}", width, " " * 6))
        lines += [wrapped(f"      not {each}", width, " " * 10) for each in _grouped(refusals)]
    return [*lines, *_by_site(rows, said, width), *_absent(rows, width)]


# ---------------------------------------------------------------- what sites share


def _judged(rows: Sequence[Row]) -> list[str]:
    """Keys of the sites that refused a candidate."""
    return list(dict.fromkeys(row.key for row in rows if row.outcome != "absent" and row.rejected))


def _refusals(row: Row) -> Iterable[Refusal]:
    return [(candidate, part) for candidate, reason in row.rejected for part in reason.split("; ")]


def _shared(rows: Sequence[Row]) -> dict[Refusal, list[str]]:
    """The refusals that most sites share, with the keys of these sites."""
    judged = _judged(rows)
    if len(judged) < 2:
        return {}
    found: dict[Refusal, dict[str, int]] = {}
    for row in rows:
        if row.outcome != "absent":
            for refusal in dict.fromkeys(_refusals(row)):
                at = found.setdefault(refusal, {})
                at[row.key] = at.get(row.key, 0) + 1
    times: dict[str, int] = {}
    for row in (row for row in rows if row.outcome != "absent"):
        times[row.key] = times.get(row.key, 0) + 1  # a site of two graphs has two rows, and it holds in both
    held = {refusal: [key for key in at if at[key] == times[key]] for refusal, at in found.items()}
    return {refusal: keys for refusal, keys in held.items() if len(keys) >= MOST * len(judged)}


# ---------------------------------------------------------------- by site


def _by_site(rows: Sequence[Row], said: Mapping[Refusal, Sequence[str]], width: int) -> list[str]:
    """The reason for each site's choice, and its refused candidates without those in `said`. Sites for which all of
    this is equal share an entry."""
    lines: list[str] = []
    alike: dict[Any, list[Row]] = {}
    for row in (row for row in rows if row.outcome != "absent"):
        left = tuple(_left(row, said))
        alike.setdefault((choice(row), row.reason, row.ranges, row.timed_elsewhere, left), []).append(row)
    for (chosen, reason, ranges, elsewhere, left), several in alike.items():
        keys = list(dict.fromkeys(row.key for row in several))
        lines.append(wrapped(f"  {', '.join(keys)}", width, "  "))
        lines.append(wrapped(f"      {chosen}: {reason or 'no reason given'}", width, " " * 10))
        if elsewhere:
            lines.append(wrapped(f"      {elsewhere}", width, " " * 10))
        if ranges:
            lines.append(wrapped(f"      by batch: {'; '.join(ranges)}", width, " " * 10))
        lines += [wrapped(f"      not {each}", width, " " * 10) for each in _grouped(left)]
    return lines


def _left(row: Row, said: Mapping[Refusal, Sequence[str]]) -> Iterable[tuple[str, str]]:
    """The refused candidates of which `said` says nothing for this site."""
    for candidate, reason in row.rejected:
        if not any(row.key in said.get((candidate, part), ()) for part in reason.split("; ")):
            yield candidate, reason


def _absent(rows: Sequence[Row], width: int) -> list[str]:
    absent: dict[str, list[str]] = {}
    for row in (row for row in rows if row.outcome == "absent"):
        absent.setdefault(row.reason, []).append(row.key)
    return [
        wrapped(f"  {len(keys)} of the plan: {reason}: {', '.join(keys)}", width, " " * 6)
        for reason, keys in absent.items()
    ]


def _grouped(refused: Iterable[tuple[str, str]]) -> list[str]:
    """Candidates with the same reasons on one line."""
    reasons: dict[str, list[str]] = {}
    for candidate, reason in refused:
        reasons.setdefault(candidate, []).append(reason)
    by_reason: dict[str, list[str]] = {}
    for candidate, several in reasons.items():
        by_reason.setdefault("; ".join(several), []).append(candidate)
    return [f"{', '.join(candidates)}: {reason}" for reason, candidates in by_reason.items()]


def choice(row: Row) -> str:
    return f"{row.recipe}/{row.provider}" if row.provider else row.recipe


def wrapped(line: str, width: int, indent: str) -> str:
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
