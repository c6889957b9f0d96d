"""One profiled site, and what dispatch decides about it."""

from __future__ import annotations

import sympy
import torch

from loka_compile.dispatch.choose import dispatch
from loka_compile.probe.profile import Profile
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.options import Options
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site

GOOD = ErrorScore(0.02, 40.0, 0.01)
LARGE = (1, 16384, 8192, 8192)


def profiled(sizes=LARGE, dtype=torch.bfloat16, scores=None, drawn=None, static_rhs=False):
    numbers = map(sympy.Integer, sizes)
    site = Site("fc#0:output", "bmm" if sizes[0] > 1 else "mm", "output", *numbers, dtype, static_rhs=static_rhs)
    scores = dict.fromkeys(RECIPES, GOOD) if scores is None else scores
    return SiteProfile(site, 1, OperandStats(), OperandStats(), scores, drawn or {}, sizes)


def decide(known=None, target="h100", **options):
    plan = dispatch(Profile({"fc#0:output": known or profiled()}), options=Options(target=target, **options))
    return plan.decisions["fc#0:output"]


def reasons(decision):
    return {str(candidate): reason for candidate, reason in decision.rejected}
