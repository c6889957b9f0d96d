"""What the tests of the race share: plans of made-up sites, and graphs that take as long as they are told."""

from __future__ import annotations

import time
from dataclasses import replace

import sympy
import torch

from loka_compile.dispatch import kept_times
from loka_compile.spec.decision import Candidate, Decision, Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial.race import never_slower, unknown

INT8, UINT8 = Candidate("int8_rowwise", "aten"), Candidate("uint8_affine", "aten")


def forget():
    kept_times._file.cache_clear()
    kept_times.times.cache_clear()


def site(name):
    return Site(f"{name}#0:output", "mm", "output", *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)


def plan_of(target="cpu", *names):
    decisions = [Decision(site(name), INT8, "fast", {str(INT8): Score()}) for name in names or ("a", "b")]
    return Plan(target, {decision.site.key: decision for decision in decisions})


def timed_plan(before, after):
    """Of two sites that take so many microseconds each, before and lowered."""
    scores = {"keep": Score(time_us=before), str(INT8): Score(time_us=after)}
    decisions = {key: replace(d, scores=scores) for key, d in plan_of().decisions.items()}
    return replace(plan_of(), decisions=decisions)


class Builder:
    """Builds graphs that take as long as they are told, and remembers what it built."""

    def __init__(self, planned, unplanned):
        self.seconds = {True: planned, False: unplanned}
        self.built = []

    def __call__(self, plan):
        self.built.append(plan)
        seconds = self.seconds[bool(plan.lowered)]

        def call(x):
            time.sleep(seconds)
            return (x,)

        return call, [plan]


def race(plan, builder, x=None, device="cpu", options=None, floor=unknown, watched=False):
    plans, inputs = plan if isinstance(plan, list) else [plan], [torch.ones(2) if x is None else x]
    raced = never_slower(plans, builder, inputs, options or Options(), device, (), floor, watched)
    return raced.plan, raced.built


# ---------------------------------------------------------------- what the exact passes made of it


def sleeping(seconds):
    def call(x):
        time.sleep(seconds)
        return (x,)

    return call, [seconds]
