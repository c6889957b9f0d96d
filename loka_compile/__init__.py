"""loka: `torch.compile(model, backend="loka")` for large recommendation models in low precision.

    import loka_compile as loka

    with loka.probe(model) as probe:                 # 1. profile: where is low precision safe
        model(batch)
    compiled = torch.compile(model, backend="loka", options={"profile": probe.profile})
    compiled(batch)                                  # 2. dispatch, rewrite, compile
    print(loka.explain(compiled))                    # 3. read every decision with its reason

This module stays light: torch finds the backend through its entry point, and nothing of triton or Inductor is
imported before a graph is compiled.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Options": "loka_compile.spec.options",
    "adapt": "loka_compile.mods.adapt",
    "CompSkip": "loka_compile.spec.compskip",
    "suggest_compskip": "loka_compile.mods.suggest",
    "OptionsError": "loka_compile.spec.options",
    "Plan": "loka_compile.spec.plan",
    "PlanError": "loka_compile.spec.plan",
    "load_plan": "loka_compile.spec.plan",
    "dispatch": "loka_compile.dispatch.choose",
    "Profile": "loka_compile.probe.profile",
    "ProfileError": "loka_compile.probe.profile",
    "load_profile": "loka_compile.probe.profile",
    "probe": "loka_compile.probe.session",
    "stratified_sample": "loka_compile.sampling.stratified",
    "explain": "loka_compile.inspect.explain",
    "records": "loka_compile.inspect.records",
    "plan": "loka_compile.inspect.plans",
    "plans": "loka_compile.inspect.plans",
    "gdpa": "loka_compile.kernels.gdpa.gdpa",
    "preview": "loka_compile.preview.api",
    "report": "loka_compile.report.api",
    "pffn": "loka_compile.kernels.gdpa.gdpa_pffn",
    "fm": "loka_compile.kernels.fm.fm",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from loka_compile.dispatch.choose import dispatch
    from loka_compile.inspect.explain import explain
    from loka_compile.inspect.plans import plan, plans
    from loka_compile.inspect.records import records
    from loka_compile.kernels.fm.fm import fm
    from loka_compile.kernels.gdpa.gdpa import gdpa
    from loka_compile.kernels.gdpa.gdpa_pffn import pffn
    from loka_compile.mods.adapt import adapt
    from loka_compile.mods.suggest import suggest_compskip
    from loka_compile.preview.api import preview
    from loka_compile.probe.profile import Profile, ProfileError, load_profile
    from loka_compile.probe.session import probe
    from loka_compile.report.api import report
    from loka_compile.sampling.stratified import stratified_sample
    from loka_compile.spec.compskip import CompSkip
    from loka_compile.spec.options import Options, OptionsError
    from loka_compile.spec.plan import Plan, PlanError, load_plan


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'loka_compile' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `loka.probe` and `loka.dispatch` the functions: importing the subpackage of that name would rebind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
