"""Pins: what a plan was made for, so that it is refused where that is no longer true.

Hardware, because its times were measured there, and the model's GEMMs, because its errors were. Weights may change: a
retrained model is the same model. A plan with changed pins is refused with everything that differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata

import torch

from loka_compile.spec.plan import Plan, PlanError
from loka_compile.spec.processor import processor
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target

HARDWARE = "hardware"
SHOWN = 8
"""Differences that a message lists before it counts."""
WHAT_TO_DO = "make the plan anew here, or drop its pins knowingly: load_plan(path).unpinned()"
OR_REDISPATCH = "; or let it be made anew from a profile: options={'profile': ..., 'on_other_hardware': 'redispatch'}"


def pins(target: Target) -> Mapping[str, str]:
    """The pins of a plan that is made now for this target."""
    hardware = cpu() if target.device == "cpu" else target.name
    return {HARDWARE: hardware, "torch": str(torch.__version__), "loka": metadata.version("loka-compile")}


def cpu() -> str:
    """This machine's processor and the instructions that decide its kernels."""
    return str(processor())


def changed_pins(plan: Plan, target: Target, device: str) -> Mapping[str, str]:
    """By pin, `what it was -> what it is here`. Empty for a plan for a GPU that is looked at on a CPU: there its
    numerics are emulated, and `explain` says so."""
    if not plan.pins or target.device != device:
        return {}
    here = dict(pins(target))
    if device == "cuda" and HARDWARE in here:
        name = torch.cuda.get_device_name().lower()
        here[HARDWARE] = target.name if target.name in name else name
    return {key: f"{old} -> {here.get(key, '')}" for key, old in plan.pins.items() if old != here.get(key)}


def check_hardware(plan: Plan, target: Target, device: str) -> None:
    """Raises PlanError where a pinned plan's times are of other hardware; warns where only library versions differ."""
    changed = changed_pins(plan, target, device)
    lines = [f"{key}: {how}" for key, how in changed.items()]
    if HARDWARE in changed:
        raise PlanError("\n  ".join(["the plan was made on other hardware:", *lines, WHAT_TO_DO + OR_REDISPATCH]))
    if lines:
        warnings.warn(f"loka: the plan was made with other versions: {'; '.join(lines)}", stacklevel=2)


def check_model(plan: Plan, sites: Sequence[Site]) -> None:
    """Raises PlanError where a graph's GEMMs are not those a pinned plan was made for.

    Sites of a backward may be missing: a plan made for serving can be looked at in training.
    """
    if not plan.pins:
        return
    lines = []
    for site in sites:
        if not site.dtype.is_floating_point or plan.find(site) is not None:
            continue
        old = plan.decisions.get(site.key)
        if old is not None:
            lines.append(f"~ {site.key}: {_gemm(old.site)} -> {_gemm(site)}")
        elif site.role == "output":
            lines.append(f"+ {site.key}: {_gemm(site)}, which the plan does not know")
    if lines:
        raise PlanError("\n  ".join([_expected(plan, sites), *_few(lines), WHAT_TO_DO]))


def _expected(plan: Plan, sites: Sequence[Site]) -> str:
    """The model the plan was made for, in words. If no GEMM is in both, it is another model, not another version."""
    if any(site.key in plan.decisions for site in sites):
        return "the plan was made for another version of the model (~ has changed, + is new):"
    its = ", ".join(_few([key for key, each in plan.decisions.items() if each.site.role == "output"]))
    return f"the plan was made for another model: it decides {its}. This graph has:"


def _few(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _gemm(site: Site) -> str:
    return f"{site.shape} in {str(site.dtype).removeprefix('torch.')}"
