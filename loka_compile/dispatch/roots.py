"""Plans and profiles from before the name of `self` was left out of the sites' names.

A model with `def forward(s, x)` had sites such as `s.mlp.0#0:output`; they are `mlp.0#0:output`, as with `self`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loka_compile.spec.options import Options
from loka_compile.spec.site import Operand, Site


def without_root(options: Options, root: str) -> Options:
    """The options with the plan or the profile given without the name that the model's code has for the model."""
    if root in ("", "self"):
        return options
    if options.plan is not None:
        return replace(options, plan=replace(options.plan, decisions=_renamed(options.plan.decisions, root)))
    if options.profile is not None:
        return replace(options, profile=replace(options.profile, sites=_renamed(options.profile.sites, root)))
    return options


def _renamed(entries: Mapping[str, Any], root: str) -> Mapping[str, Any]:
    """Decisions or site profiles by key. Old names all have the root in front, but those of the root's own GEMMs."""
    if not all(key.startswith((f"{root}.", "self#")) for key in entries):
        return entries
    return {_short(key, root): replace(each, site=_site(each.site, root)) for key, each in entries.items()}


def _site(site: Site, root: str) -> Site:
    lhs, rhs = _operand(site.lhs, root), _operand(site.rhs, root)
    return replace(site, key=_short(site.key, root), fqn=_short(site.fqn, root), lhs=lhs, rhs=rhs)


def _operand(operand: Operand, root: str) -> Operand:
    return replace(operand, tensor=_short(operand.tensor, root), made_by=_short(operand.made_by, root))


def _short(name: str, root: str) -> str:
    return name.removeprefix(f"{root}.")
