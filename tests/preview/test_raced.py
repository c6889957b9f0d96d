"""Whom a step's time is spent for, and what becomes of a plan that no race can save."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import sympy
import torch

from loka_compile.preview.model import kernel_us, rates_of
from loka_compile.preview.raced import raced, step_of
from loka_compile.preview.result import Kernel, Side
from loka_compile.spec.decision import KEEP, Candidate, Decision, Score
from loka_compile.spec.plan import Plan, parse_plan
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS

RATES = rates_of(TARGETS["h100"])


def kernel(site, megabytes, phase="forward"):
    return Kernel(phase, "library", "mm", "bfloat16", 0, int(megabytes * 1e6), site)


def test_a_kernel_counts_to_its_gemm_or_to_the_one_before():
    kernels = [kernel("", 1), kernel("fc#0:output", 2), kernel("act", 3), kernel("out#0:output", 4)]
    kernels += [kernel("out", 5, "backward"), kernel("act", 6, "backward")]
    us = [kernel_us(0, each.bytes, "bfloat16", RATES)[0] for each in kernels]
    step = step_of(kernels, RATES, {"fc", "out"})
    assert step.us == pytest.approx(sum(us))
    expected = {("", False): us[0], ("fc", False): us[1] + us[2], ("out", False): us[3], ("out", True): us[4] + us[5]}
    assert step.spent == pytest.approx(expected)


def test_where_even_the_unplanned_graph_is_slower_than_inductor_all_is_taken_back():
    site = Site("fc#0:output", "mm", "output", *map(sympy.Integer, (1, 8, 8, 8)), torch.bfloat16, "fc")
    fp8 = Candidate("fp8_rowwise", "triton")
    scores = {KEEP: Score(time_us=2), str(fp8): Score(time_us=1)}
    plan = Plan("h100", {site.key: Decision(site, fp8, "fastest", scores)})
    asked = []

    def run(name, plan, options=None, products_only=False):
        asked.append((len(plan.lowered), dict(options or {}), products_only))
        extra = [] if options else [kernel("", 1)] * (1 + len(plan.lowered))
        return {"name": name, "notes": [], "kernels": [asdict(each) for each in [kernel("fc#0:output", 9), *extra]]}

    side = raced(run, plan, RATES, False, Side("inductor", (kernel("fc", 9),)))
    assert len(side["kernels"]) == 1
    assert side["options"] == asked[-1][1]
    assert "all is taken back, as it was slower than Inductor" in parse_plan(side["plan"]).raced
    assert asked[-1][0] == 0 and not asked[-1][2] and not any(asked[-1][1]["passes"].values())


def test_in_training_a_pass_that_takes_more_from_inductor_than_it_brings_is_left_out():
    site = Site("fc#0:output", "mm", "output", *map(sympy.Integer, (1, 8, 8, 8)), torch.bfloat16, "fc")
    fp8 = Candidate("fp8_rowwise", "triton")
    scores = {KEEP: Score(time_us=2), str(fp8): Score(time_us=1)}
    plan = Plan("h100", {site.key: Decision(site, fp8, "fastest", scores)})

    def run(name, plan, options=None, products_only=False):
        megabytes = 9 - len(plan.lowered) - 3 * bool(options)
        return {"name": name, "notes": [], "kernels": [asdict(kernel("fc#0:output", megabytes))]}

    side = raced(run, plan, RATES, True, Side("inductor", (kernel("fc", 9),)))
    best = parse_plan(side["plan"])
    assert side["options"] == {"passes": {"raise_norms": False}} and len(best.lowered) == 1
    assert "without raise_norms" in best.raced and side["notes"][1].startswith("to be compiled with options=")
    assert not raced(run, plan, RATES, False, Side("inductor", (kernel("fc", 9),)))["options"]
