"""The plan: per site the recipe, the provider, the numbers and the reason. The lock file of a model's numerics.

A plan is a small JSON file made to be reviewed, committed and pinned. Equal plans are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loka_compile.spec.decision import Decision, checked, decision_from_json, decision_to_json
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS

VERSION = 2


class PlanError(ValueError):
    """A plan file that cannot be used: what was expected, what came, what to do."""


@dataclass(frozen=True)
class Plan:
    """Decisions by site key, for one target.

    origin: what they were made from. raced: how the planned graph did against the unplanned one, "" if it was not
    raced. pins: hardware and versions it holds for (pin.py), empty if for any.
    """

    target: str
    decisions: Mapping[str, Decision]
    origin: str = ""
    version: int = VERSION
    raced: str = ""
    pins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what makes the graph: target and decisions; part of every cache key."""
        return hashlib.sha256(replace(self, origin="", raced="", pins={}).to_json().encode()).hexdigest()

    @property
    def lowered(self) -> list[Decision]:
        return [decision for decision in self.decisions.values() if decision.lowered]

    @cached_property
    def lowers(self) -> bool:
        """Whether it lowers any site, here or at another batch."""
        return any(decision.recipes for decision in self.decisions.values())

    def find(self, site: Site) -> Decision | None:
        """The decision for a site of a graph.

        Two graphs of one model (after a graph break) may use a key twice; the second is then filed under
        `key@source`. The contraction and the width must agree, so that a plan never speaks of another GEMM.
        """
        for key in (f"{site.key}@{site.source}", site.key):
            decision = self.decisions.get(key)
            if decision is not None and decision.site.same_gemm(site):
                return decision
        return None

    def unpinned(self) -> Plan:
        """The same plan, to be followed on any hardware and by any version of the model, at your own risk."""
        return replace(self, pins={})

    def with_decision(self, decision: Decision) -> Plan:
        key = next(k for k, d in self.decisions.items() if d.site == decision.site)
        return replace(self, decisions={**self.decisions, key: decision})

    def to_json(self) -> str:
        """Readable JSON; the same plan gives the same text."""
        body = {
            "format": "loka-plan",
            "version": self.version,
            "target": self.target,
            "origin": self.origin,
            "raced": self.raced,
            "pins": dict(self.pins),
            "decisions": {key: decision_to_json(decision) for key, decision in self.decisions.items()},
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json())

    def __repr__(self) -> str:
        return f"Plan(target={self.target!r}, sites={len(self.decisions)}, lowered={len(self.lowered)})"


def load_plan(path: str | Path) -> Plan:
    """Read a plan file. Raises PlanError on anything but a plan this version understands."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read plan {path}: {error}") from error
    return parse_plan(text, str(path))


def parse_plan(text: str, name: str = "plan") -> Plan:
    try:
        body = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{name} is not JSON ({error}): pass a file written by Plan.save") from error
    if not isinstance(body, dict) or body.get("format") != "loka-plan":
        raise PlanError(f'{name} is not a loka plan (no "format": "loka-plan"): pass a file written by Plan.save')
    if body.get("version") != VERSION:
        raise PlanError(f"{name} has plan version {body.get('version')}, this loka reads {VERSION}: make the plan anew")
    if body.get("target") not in list(TARGETS):
        raise PlanError(f"{name} is for the unknown target {body.get('target')!r}: known are {', '.join(TARGETS)}")
    try:
        decisions = {key: decision_from_json(value) for key, value in body["decisions"].items()}
        pins = {key: checked(str, value) for key, value in checked(dict, body["pins"]).items()}
        return Plan(body["target"], decisions, checked(str, body["origin"]), VERSION, checked(str, body["raced"]), pins)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"{name} is damaged ({type(error).__name__}: {error}): make the plan anew") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
