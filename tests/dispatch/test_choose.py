"""Dispatch: who is chosen, and that everyone else leaves with the right reason. Times are modelled or made up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from loka_compile.dispatch import candidates, roofline
from loka_compile.dispatch.choose import dispatch
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.probe.profile import Profile, ProfileError
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.segments import SegmentScore, Source
from loka_compile.spec.decision import KEPT, Candidate
from loka_compile.spec.options import Options
from loka_compile.spec.recipes import RECIPES
from tests.dispatch.one_site import GOOD, decide, profiled, reasons

# ---------------------------------------------------------------- who wins


def test_the_fastest_within_budget_wins(times):
    times |= {"bf16/aten": 60.0, "int8_rowwise/aten": 40.0, "fp16/aten": 50.0}
    known = profiled(dtype=torch.float32)
    decision = decide(known, "cpu", recipes=("bf16", "int8_rowwise", "fp16"))
    assert decision.chosen == Candidate("int8_rowwise", "aten") and decision.reason == "fastest within budget, 2.50x"
    assert decision.score.time_us == 40 and decision.before.time_us == 100
    assert reasons(decision) == {
        "bf16/aten": "slower than int8_rowwise/aten: 60 us against 40",
        "fp16/aten": "slower than int8_rowwise/aten: 50 us against 40",
    }


def test_a_large_product_on_a_gpu_goes_to_fp8_and_a_small_one_stays():
    assert decide().chosen == Candidate("fp8_rowwise", "aten")
    small = decide(profiled((1, 256, 256, 256)))
    assert small.chosen == KEPT and "x, wanted 1.05x" in small.reason


def test_every_time_says_whether_it_is_modelled(times):
    decision = decide(profiled(), "h200")
    assert {s.time_source for s in decision.scores.values() if s.time_us is not None} == {"modelled: roofline h200"}
    times |= {"bf16/aten": 60.0}
    decision = decide(profiled(dtype=torch.float32), "cpu", recipes=("bf16",))
    assert {s.time_source for s in decision.scores.values()} == {"measured on this CPU"}


def test_dispatch_is_deterministic():
    profile = Profile({f"fc#{i}:output": profiled((1, 1024 * (i + 1), 512, 512)) for i in range(4)})
    assert dispatch(profile, "h100").to_json() == dispatch(profile, "h100").to_json()
    assert dispatch(profile, "h100") == dispatch(profile, options=Options(target="h100"))
    assert dispatch(profile, "b200", Options(target="h100")).target == "b200"  # what is said last


def test_every_candidate_is_chosen_or_rejected_with_a_reason():
    for options in ({}, {"min_speedup": 0}):
        decision = decide(**options)
        every = list(candidates.candidates(Options(target="h100", **options)))
        assert {decision.chosen, *(c for c, _ in decision.rejected)} == set(every)
        assert all(reason for _, reason in decision.rejected)
        assert set(decision.scores) == {"keep", *map(str, every)}


def test_what_timing_cannot_tell_buys_accuracy(times):
    """int8 is 0.4 % faster and ten times noisier; 30 % faster it would win."""
    scores = {"int8_rowwise": ErrorScore(0.02, 40.0, 0.01), "bf16": ErrorScore(0.02, 50.0, 0.01)}
    known = profiled(dtype=torch.float32, scores=scores)
    times |= {"int8_rowwise/aten": 49.8, "bf16/aten": 50.0}
    decision = decide(known, "cpu", recipes=("bf16", "int8_rowwise"))
    assert decision.chosen == Candidate("bf16", "aten")
    assert "but noisier than" in reasons(decision)["int8_rowwise/aten"]
    times["int8_rowwise/aten"] = 35.0
    assert decide(known, "cpu", recipes=("bf16", "int8_rowwise")).chosen == Candidate("int8_rowwise", "aten")


def test_another_library_has_to_win_by_more(times, monkeypatch):
    torchao = PROVIDERS["torchao"]
    monkeypatch.setattr(candidates, "PROVIDERS", {**candidates.PROVIDERS, "torchao": torchao})
    monkeypatch.setattr(type(torchao), "reasons_against", lambda *_: [])
    monkeypatch.setattr(type(torchao), "same_as", lambda *_: "")
    times |= {"int8_rowwise/aten": 50.0, "int8_rowwise/torchao": 48.0}
    known = profiled(dtype=torch.float32)
    decision = decide(known, "cpu", recipes=("int8_rowwise",))
    assert decision.chosen == Candidate("int8_rowwise", "aten")
    expected = "48 us against 50 by int8_rowwise/aten: another library has to win by 5%"
    assert reasons(decision)["int8_rowwise/torchao"] == expected
    times["int8_rowwise/torchao"] = 45.0
    assert decide(known, "cpu", recipes=("int8_rowwise",)).chosen == Candidate("int8_rowwise", "torchao")


def test_a_library_that_runs_another_ones_kernels_is_not_asked(times, monkeypatch):
    """On a CPU: not even where speed is no matter, as importing it amid a session adds to Dynamo's guards."""
    torchao = PROVIDERS["torchao"]
    monkeypatch.setattr(candidates, "PROVIDERS", {**candidates.PROVIDERS, "torchao": torchao})
    times["int8_rowwise/aten"] = 200.0  # nothing is known of torchao's: timing it would be an error
    pytest.importorskip("torchao")
    decision = decide(profiled(dtype=torch.float32), "cpu", recipes=("int8_rowwise",), min_speedup=0)
    assert decision.chosen == Candidate("int8_rowwise", "aten")
    assert "those of aten on this cpu" in reasons(decision)["int8_rowwise/torchao"]


# ---------------------------------------------------------------- exactly on the boundary


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_budgets_include_their_boundary(step, times):
    """`max_mere` is the highest, `min_sqnr_db` and `min_speedup` are the lowest that will do."""
    nudge = lambda value: math.nextafter(value, math.inf * step) if step else value  # noqa: E731
    times["bf16/aten"] = 50.0

    def run(error, **more):
        return decide(profiled(dtype=torch.float32, scores={"bf16": error}), "cpu", recipes=("bf16",), **more).lowered

    assert run(ErrorScore(nudge(0.2), 30.0, 0.1)) == (step <= 0)
    assert run(ErrorScore(0.1, nudge(20.0), 0.1)) == (step >= 0)
    assert run(GOOD, min_speedup=nudge(2.0)) == (step <= 0)


def test_infinity_lifts_a_budget():
    scores = dict.fromkeys(RECIPES, ErrorScore(50.0, 1.0, 20.0))
    assert not decide(profiled(scores=scores)).lowered
    assert decide(profiled(scores=scores), max_mere=math.inf, min_sqnr_db=0).lowered


def test_emulation_competes_only_where_speed_is_no_matter(monkeypatch):
    only = {name: PROVIDERS[name] for name in ("aten", "emulated")}
    monkeypatch.setattr(candidates, "PROVIDERS", only)
    blockwise = Candidate("fp8_blockwise", "emulated")
    assert decide(recipes=("fp8_blockwise",)).chosen == KEPT
    decision = decide(recipes=("fp8_blockwise",), min_speedup=0)
    assert decision.chosen == blockwise and decision.reason == "fastest within budget, numerics only"
    assert decision.score.time_us is None and decision.score.time_source == ""
    both = decide(recipes=("fp8_blockwise", "fp8_rowwise"), min_speedup=0)
    assert both.chosen == Candidate("fp8_rowwise", "aten")  # a kernel goes before its emulation
    assert reasons(both)["fp8_blockwise/emulated"] == "numerics only, as against fp8_rowwise/aten"


def test_a_slower_kernel_is_taken_where_speed_is_no_matter():
    decision = decide(profiled((1, 256, 256, 256)), recipes=("fp8_rowwise",), min_speedup=0)
    assert decision.chosen == Candidate("fp8_rowwise", "aten")
    assert decision.score.time_us > decision.before.time_us


def test_the_time_is_that_of_the_largest_call(monkeypatch):
    seen = []
    monkeypatch.setattr(roofline, "keep_us", lambda site, sizes, target: seen.append(sizes) or 1.0)
    decide(profiled((1, 640, 512, 256)))
    assert (seen[0].batch, seen[0].M, seen[0].N, seen[0].K) == (1, 640, 512, 256)


# ---------------------------------------------------------------- whom the rows stand for


def harmed(rows=40, mere=0.5, sqnr_db=30.0):
    """Safe over all rows in every recipe, and unsafe for a small country in FP8."""
    bad = dict.fromkeys(("fp8_tensorwise", "fp8_rowwise", "fp8_blockwise"), ErrorScore(mere, sqnr_db, 0.3))
    segments = {"country=US": SegmentScore(900, dict.fromkeys(RECIPES, GOOD)), "country=NZ": SegmentScore(rows, bad)}
    return replace(profiled(), segments=segments)


def test_what_harms_a_minority_is_not_chosen_and_says_whom():
    decision = decide(harmed(), recipes=("fp8_tensorwise", "fp8_rowwise"))
    assert decision.chosen == KEPT
    assert "unsafe for country=NZ: MERE 0.5 on its 40 rows, budget 0.2 (all rows: 0.02)" in decision.reason
    by_noise = reasons(decide(harmed(mere=0.1, sqnr_db=12.0)))["fp8_rowwise/aten"]
    assert by_noise.startswith("unsafe for country=NZ: SQNR 12.0 dB on its 40 rows, budget 20")


def test_it_can_be_chosen_all_the_same_and_is_still_told():
    decision = decide(harmed(), guard_segments=False)
    assert decision.chosen.recipe == "fp8_rowwise"
    assert decision.reason.endswith("; unsafe for country=NZ: MERE 0.5 on its 40 rows, budget 0.2 (all rows: 0.02)")


def test_a_handful_of_rows_decides_nothing():
    assert decide(harmed(rows=7)).chosen.recipe == "fp8_rowwise"


def from_source(share, rows=100_000, **options):
    source = Source(rows, {"country": {"NZ": share, "US": 1 - share}}, {"country": {"NZ": 0.3, "US": 0.7}})
    return dispatch(Profile({"fc#0:output": profiled()}, source=source), options=Options(target="h100", **options))


def test_a_profile_from_a_poor_source_is_refused():
    with pytest.raises(ProfileError, match=r"cannot speak for production: 'country' agrees least.*min_source_quality"):
        from_source(0.02)
    assert from_source(0.02, min_source_quality=0.5).lowered


def test_a_profile_from_a_doubtful_source_is_flagged():
    plan = from_source(0.25, rows=60)
    assert plan.lowered and "FLAGGED: its 60 rows may not speak for production: 'country' agrees least" in plan.origin


def test_a_profile_from_a_good_source_is_as_any_other():
    assert "FLAGGED" not in from_source(0.29).origin
