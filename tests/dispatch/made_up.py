"""A small model, plans whose sites have made-up errors, and a clock whose times are made up."""

from __future__ import annotations

import math

import sympy
import torch
from torch import nn

from loka_compile.dispatch.cost import Cost, Times, casts
from loka_compile.dispatch.prices import Clock, clock_of
from loka_compile.dispatch.steady import HERE
from loka_compile.spec.decision import Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

FP8 = Candidate("fp8_tensorwise", "aten")


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


def site(name, role="output"):
    return Site(f"{name}#0:{role}", "mm", role, *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)


def plan_of(**mere):
    """A plan that lowers each named site, with the error it was scored at."""
    scores = {name: {str(FP8): Score(error, -20 * math.log10(error))} for name, error in mere.items()}
    decisions = [Decision(site(name), FP8, "chosen", scores[name]) for name in mere]
    return Plan("cpu", {decision.site.key: decision for decision in decisions})


def made_up_clock(keep_us, kernel_us, cast_us=None, lost=lambda fit, sizes: ""):
    """clock_of with made-up times for what is measured. keep_us(sizes), kernel_us(fit, sizes): microseconds; cast_us:
    those of any cast, under "cast". lost(fit, sizes): why a kernel is not timed."""

    def times(asked, margin):
        return [answer(each.site, each.sizes, each.fits) for each in asked]

    def answer(site, sizes, fits):
        lost_here = {fit.candidate: lost(fit, sizes) for fit in fits if lost(fit, sizes)}
        timed = [fit for fit in fits if fit.candidate not in lost_here]
        return Times(keep_us(sizes), {fit.candidate: cost(fit, site, sizes) for fit in timed}, HERE, lost_here)

    def cost(fit, site, sizes):
        us = (cast_us or {}).get("cast", 0.0)
        return Cost(kernel_us(fit, sizes), tuple(each.taking(us, us) for each in casts(site, sizes, fit.recipe)))

    clock = Clock(times, symbolic=False)
    return lambda target: clock if target.measured else clock_of(target)
