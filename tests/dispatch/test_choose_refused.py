"""Dispatch: why a candidate is not chosen, and why a site is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.dispatch.choose import dispatch
from loka_compile.probe.pairs import Estimated, Interval
from loka_compile.probe.profile import Profile
from loka_compile.probe.score import ErrorScore
from loka_compile.spec.decision import KEPT, Candidate
from loka_compile.spec.plan import parse_plan
from loka_compile.spec.recipes import RECIPES
from tests.dispatch.one_site import GOOD, decide, profiled, reasons


def test_unsupported():
    batched = reasons(decide(profiled((8, 512, 512, 512))))
    assert "takes two matrices, this is a batch of 8" in batched["fp8_rowwise/aten"]
    assert "block scales" in reasons(decide())["fp8_blockwise/aten"]


def test_unaligned_sizes_are_padded_where_that_pays():
    known = profiled((1, 16384, 4096, 1000))
    plan = dispatch(Profile({"fc#0:output": known}), "h100")
    decision = plan.decisions["fc#0:output"]
    assert decision.chosen == Candidate("fp8_rowwise", "aten")
    assert decision.reason.endswith("x; padded: K 1000 -> 1008") and decision.site.K == 1000
    again = parse_plan(plan.to_json())
    assert again.to_json() == plan.to_json() and again.decisions["fc#0:output"].reason == decision.reason
    assert "padded" not in decide(profiled((1, 16384, 4096, 1008))).reason
    assert decision.score.time_us > decide(profiled((1, 16384, 4096, 992))).score.time_us


def test_unaligned_sizes_stay_where_padding_does_not_pay():
    for sizes, how in (((1, 16384, 4, 1024), "N 4 -> 16"), ((1, 16384, 1024, 3), "K 3 -> 16")):
        decision = decide(profiled(sizes, static_rhs=True))
        assert decision.chosen == KEPT
        assert reasons(decision)["fp8_rowwise/aten"].endswith(f"; padded: {how}")


def test_what_is_padded_and_too_inaccurate_says_that():
    scores = dict.fromkeys(RECIPES, ErrorScore(0.5, 12.0, 0.1))
    assert reasons(decide(profiled((1, 16384, 4096, 1000), scores=scores)))["fp8_rowwise/aten"].startswith("MERE 0.5")


def test_only_numbers_are_padded():
    known = profiled((1, 1024, 1024, 4099))
    symbol = sympy.Symbol("s0", integer=True, positive=True)
    known = replace(known, site=replace(known.site, role="grad_weight", K=symbol))
    decision = decide(known)
    assert decision.chosen == KEPT
    reason = "it wants multiples of 16, and K = s0: only numbers are padded"
    assert reason in reasons(decision)["fp8_rowwise/aten"]


def test_too_inaccurate():
    scores = dict.fromkeys(RECIPES, GOOD) | {
        "fp8_tensorwise": ErrorScore(0.5, 12.0, 0.1),
        "fp8_rowwise": ErrorScore(0.1, 12.0, 0.1),
    }
    why = reasons(decide(profiled(scores=scores)))
    assert why["fp8_tensorwise/aten"] == "MERE 0.5, budget 0.2; SQNR 12.0 dB, budget 20"
    assert why["fp8_rowwise/aten"] == "SQNR 12.0 dB, budget 20"
    drawn = Estimated(100, Interval(0.7, 0.9), Interval(30.0, 31.0), Interval(0.1, 0.1))
    only_drawn = decide(profiled(drawn={"fp8_rowwise": drawn}))  # the worse of real and drawn, and the worse end
    assert reasons(only_drawn)["fp8_rowwise/aten"] == "MERE 0.9, budget 0.2"


def test_not_scored_or_not_finite():
    for scores in ({}, dict.fromkeys(RECIPES, ErrorScore(math.inf, -math.inf, math.inf))):
        decision = decide(profiled(scores=scores), max_mere=math.inf, min_sqnr_db=0)
        assert decision.chosen == KEPT
        assert "no finite error" in reasons(decision)["fp8_rowwise/aten"]


def test_too_slow():
    assert reasons(decide(profiled((1, 256, 256, 256))))["fp8_rowwise/aten"].startswith("0.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_already_of_that_width(dtype):
    why = reasons(decide(profiled(dtype=dtype)))
    name = str(dtype).removeprefix("torch.")
    assert f"the operands are {name} already" in why["bf16/aten"] and f"are {name} already" in why["fp16/aten"]
    assert "already" not in reasons(decide(profiled(dtype=torch.float32))).get("bf16/aten", "")


def test_an_empty_gemm_is_kept():
    decision = decide(profiled((1, 0, 64, 64)))
    assert decision.chosen == KEPT and decision.reason == "the GEMM is empty"


def test_no_recipe_at_all():
    decision = decide(recipes=())
    assert decision.chosen == KEPT and decision.reason == "no recipe was allowed" and decision.rejected == ()


def test_keep_tells_the_nearest_miss():
    small = decide(profiled((1, 256, 256, 256)))
    assert small.reason.startswith("no kernel is fast enough; the fastest is ")
    only = decide(profiled((1, 4096, 4096, 1000)), recipes=("bf16",))
    assert only.reason == "the operands are bfloat16 already"


def test_why_a_site_is_kept_is_the_true_reason(times):
    """Speed where a kernel may run, the errors where they are all too large, and neither where no kernel may run."""
    times |= {"bf16/aten": 25000.0, "int8_rowwise/aten": 120.0}
    wide = profiled(dtype=torch.float32, scores={"bf16": GOOD, "int8_rowwise": GOOD})
    assert decide(wide, "cpu", recipes=("bf16", "int8_rowwise", "fp16")).reason == (
        "no kernel is fast enough; the fastest is int8_rowwise/aten: 0.83x, wanted 1.05x (120 us against 100)"
    )
    assert reasons(decide(wide, "cpu", recipes=("bf16",)))["bf16/aten"].startswith("0.004x, wanted 1.05x (25000 us")
    noisy = {"bf16": ErrorScore(0.3, 25.0, 0.1), "int8_rowwise": ErrorScore(0.5, 22.0, 0.1)}
    noisy = decide(profiled(dtype=torch.float32, scores=noisy), "cpu", recipes=("bf16", "int8_rowwise"))
    assert noisy.reason == "no recipe is within the error budget; bf16/aten: MERE 0.3, budget 0.2"
    batch = profiled((4, 64, 64, 64), scores={"int8_rowwise": GOOD, "bf16": GOOD})
    assert decide(batch, "cpu", recipes=("bf16", "int8_rowwise")).reason.startswith("no kernel may run; ")


def test_a_gemm_that_takes_no_time_is_not_said_to_be_faster_by_so_much(times):
    times |= {"keep": 0.0, "bf16/aten": 3.0}
    decision = decide(profiled(dtype=torch.float32), "cpu", recipes=("bf16",))
    assert decision.reason == "3 us, and the GEMM as it is takes less than can be timed"
