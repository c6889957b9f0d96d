"""Reading a plan or a profile in the names of the graph at hand, where it was made under other names.

A layer that is compiled alone calls its GEMM `fc#0:output`. The profile of the whole model has that GEMM four times, as
`blocks.0.fc#0:output` and so on. Dynamo hands one graph to all layers that are alike. So the graph gets what holds for
all of them: from a profile the worst of their errors, from a plan the choices in which they agree.

The other way about, a profile of `net` knows the GEMMs of `module.net` (DistributedDataParallel's, say), if only one
place of the graph can be meant.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from loka_compile.graph.sites import module_name, source_line
from loka_compile.probe.profile import Profile
from loka_compile.probe.segments import SegmentScore
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.spec.decision import Decision
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

ROOT = "self"
SHOWN = 4
"""Names that a message lists before it counts."""

Knows = SiteProfile | Decision


@dataclass(frozen=True, eq=False)
class PartProfile(Profile):
    """A profile in a graph's names. stands_for: the names it was made under, in words."""

    stands_for: str = ""


def stands_for(profile: Profile) -> str:
    """The names that a profile was made under, in words; "" if they are the graph's."""
    return profile.stands_for if isinstance(profile, PartProfile) else ""


def in_names_of(options: Options, gm: fx.GraphModule, sites: Any) -> Options:
    """The options, their plan or profile in the names of this graph. Warns where it knows none of the graph's GEMMs.

    sites(): the graph's GEMMs. That takes a trace, so it is called only where the modules' names do not tell.
    """
    given = options.plan or options.profile
    if given is None:
        return options
    name, entries = ("plan", given.decisions) if isinstance(given, Plan) else ("profile", given.sites)
    known: list[Knows] = list(entries.values())
    if not known or _named_alike(known, gm):
        return options
    found = sites()
    outer, inner = _places(known, found)
    by_name = sum(given.find(site) is not None for site in found if site.role == "output")
    if not found or by_name > max(map(_outputs, (*outer.values(), *inner.values())), default=0):
        return options  # nothing to know; or more by its very name, from lines of code that have moved since
    if not (outer or inner or all(given.find(site) is None for site in found)):
        return options
    places = outer or (inner if len(inner) == 1 else {})
    if not places:
        said = f"knows none of the GEMMs of this graph ({_few([site.key for site in found])})"
        if not (isinstance(given, Plan) and given.pins):  # a pinned plan is refused, with all of this (pin.py)
            warnings.warn(
                f"loka: the {name} given {said}: it is of {_few([each.site.key for each in known])}. Nothing is "
                "lowered here: probe the module that is compiled, or compile the one that was probed",
                stacklevel=2,
            )
        meant = {id(given.find(site)) for site in found}  # another GEMM of that name
        return _with(options, given, {k: v for k, v in entries.items() if id(v) not in meant}, f"which {said}")
    together = {site.key: _all_as_one([p[site.key] for p in places.values() if site.key in p], site) for site in found}
    renamed = {key: each for key, each in together.items() if each is not None}
    which = f"read as {_few(list(places))}" + (", all of which hold" if len(places) > 1 else "")
    return _with(options, given, renamed, which)


def _with(options: Options, given: Plan | Profile, entries: Mapping[str, Any], said: str) -> Options:
    if isinstance(given, Plan):
        return replace(options, plan=replace(given, decisions=entries, origin=f"{given.origin}, {said}".lstrip(", ")))
    values = {name: getattr(given, name) for name in ("created_with", "seed", "version", "source")}
    return replace(options, profile=PartProfile(entries, **values, stands_for=said))


def _named_alike(known: Sequence[Knows], gm: fx.GraphModule) -> bool:
    """Whether the graph runs one of the modules, by name and line of code."""
    lines = {(each.site.fqn, each.site.source) for each in known}
    steps = (node for node in gm.graph.nodes if node.op.startswith("call_"))
    return any((module_name(node), source_line(node)) in lines for node in steps)


# ---------------------------------------------------------------- places

Place = dict[str, Knows]
"""Supposing that the graph is a certain place of the model: what is known of its sites, by their keys."""


def _places(known: Sequence[Knows], sites: Sequence[Site]) -> tuple[dict[str, Place], dict[str, Place]]:
    """Two kinds of places: those in the probed model that the graph may be, and those in the graph that the probed
    model may be. Of each kind those of which most of the forward is known."""
    outer: dict[str, Place] = defaultdict(dict)
    inner: dict[str, Place] = defaultdict(dict)
    for site in sites:
        for each in known:
            if not _may_be(each.site, site):
                continue
            place, within = _prefix(_module(each.site), _module(site)), _prefix(_module(site), _module(each.site))
            if place is not None:
                outer[place or ROOT].setdefault(site.key, each)
            elif within is not None:
                inner[f"what is {within} here"].setdefault(site.key, each)
    return _largest(outer), _largest(inner)


def _largest(places: Mapping[str, Place]) -> dict[str, Place]:
    most = max(map(_outputs, places.values()), default=0)
    return {name: place for name, place in places.items() if _outputs(place) == most}


def _outputs(place: Place) -> int:
    """How much of the forward is known."""
    return sum(each.site.role == "output" for each in place.values())


def _may_be(one: Site, other: Site) -> bool:
    """Whether two sites are one GEMM, the name of the place aside.

    A module of another class may have equal names and sizes, but not the same line of code. A linear that is compiled
    alone has no line of the model, so its line is not compared.
    """
    alone = ROOT in (_module(one), _module(other))
    one_line = alone or not (one.source and other.source) or one.source == other.source
    return one_line and _rest(one) == _rest(other) and one.same_gemm(other)


def _prefix(long: str, short: str) -> str | None:
    """`blocks.0` of `blocks.0.fc` and `fc`; None if the one does not end in the other."""
    if long == short:
        return ""
    if short == ROOT:
        return long
    return long.removesuffix(f".{short}") if long.endswith(f".{short}") else None


def _module(site: Site) -> str:
    return site.key.partition("#")[0]


def _rest(site: Site) -> str:
    return site.key.partition("#")[2]


# ---------------------------------------------------------------- several as one


def _all_as_one(known: Sequence[Knows], site: Site) -> Knows | None:
    """The value that holds for all of them; None if there are none."""
    if not known:
        return None
    decisions = [each for each in known if isinstance(each, Decision)]
    if not decisions:
        worst = functools.reduce(_worse, [each for each in known if isinstance(each, SiteProfile)])
        return replace(worst, site=site)
    first = decisions[0]
    named = replace(first, site=replace(first.site, key=site.key, fqn=site.fqn))
    other = next((d for d in decisions if (d.chosen, d.ranges) != (first.chosen, first.ranges)), None)
    if other is None:
        return named
    reason = f"one graph serves {first.site.key} and {other.site.key}, but the plan decides them differently"
    return named.demoted(reason)


def _worse(one: SiteProfile, other: SiteProfile) -> SiteProfile:
    """One profile for two GEMMs: the worse of each error, on real and drawn operands, for recipes that both know."""
    errors = {recipe: (one.error(recipe), other.error(recipe)) for recipe in {**one.scores, **one.drawn}}
    scores = {recipe: a.worst(b) for recipe, (a, b) in errors.items() if a is not None and b is not None}
    shared = one.segments.keys() & other.segments.keys()
    both = {name: _worse_segment(one.segments[name], other.segments[name]) for name in sorted(shared)}
    return replace(
        one,
        calls=one.calls + other.calls,
        scores=scores,
        drawn={},
        observed=max(one.observed, other.observed),
        segments={**one.segments, **other.segments, **both},
    )


def _worse_segment(one: SegmentScore, other: SegmentScore) -> SegmentScore:
    scores = {key: one.scores[key].worst(other.scores[key]) for key in one.scores if key in other.scores}
    return SegmentScore(min(one.rows, other.rows), scores)


def _few(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join([*names[:SHOWN], *([f"{more} more"] if more > 0 else [])])
