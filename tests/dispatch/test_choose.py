"""Dispatch: who is chosen, and that everyone else leaves with the right reason. Times are modelled or made up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.dispatch import candidates, choose, cut, roofline, together
from loka_compile.dispatch.choose import dispatch
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.probe.pairs import Estimated, Interval
from loka_compile.probe.profile import Profile, ProfileError
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.segments import SegmentScore, Source
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.decision import KEPT, Candidate
from loka_compile.spec.options import Options
from loka_compile.spec.plan import parse_plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from tests.dispatch.made_up import made_up_clock

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


@pytest.fixture
def times(monkeypatch):
    """Measured times made up: `keep` and one a `recipe/provider`, in microseconds."""
    made_up = {"keep": 100.0}
    only = {name: PROVIDERS[name] for name in ("aten", "emulated")}
    monkeypatch.setattr(candidates, "PROVIDERS", only)
    monkeypatch.setattr(type(only["aten"]), "no_use", lambda *_: "")  # whatever processor this is
    clock = made_up_clock(lambda sizes: made_up["keep"], lambda fit, sizes: made_up[str(fit.candidate)], made_up)
    monkeypatch.setattr(choose, "clock_of", clock)
    return made_up


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


# ---------------------------------------------------------------- all sites together


def readers(count, tensor="norm:relu", producer="relu.default", dtype=torch.float32):
    """Sites that read one tensor, each with a frozen weight of its own."""
    sites = {}
    for number in range(count):
        known = profiled(dtype=dtype, static_rhs=True)
        site = replace(known.site, key=f"fc{number}#0:output", lhs=Operand(tensor, producer))
        sites[site.key] = replace(known, site=site)
    return Profile(sites)


def test_a_shared_cast_is_paid_once(times):
    times |= {"int8_rowwise/aten": 60.0, "cast": 70.0}
    options = Options(recipes=("int8_rowwise",))
    (alone,) = dispatch(readers(1), options=options).decisions.values()
    assert not alone.lowered and alone.reason == "0.77x, wanted 1.05x (130 us against 100)"
    plan = dispatch(readers(3), options=options)
    assert len(plan.lowered) == 3 and sum(d.score.time_us for d in plan.lowered) == pytest.approx(3 * 60 + 70)
    reason = plan.decisions["fc1#0:output"].reason
    assert reason == (
        "fastest within budget, 1.20x, its cast shared with fc0#0:output, fc2#0:output (0.77x alone)"
    )  # 60 + 70 / 3 against 100


def test_the_margin_is_that_of_the_whole_group(times):
    times |= {"int8_rowwise/aten": 60.0, "cast": 70.0}  # together 250 us instead of 300
    lowered = lambda speedup: len(  # noqa: E731
        dispatch(readers(3), options=Options(recipes=("int8_rowwise",), min_speedup=speedup)).lowered
    )
    assert (lowered(1.19), lowered(1.21)) == (3, 0)


def test_sites_of_different_tensors_share_nothing(times):
    times |= {"int8_rowwise/aten": 60.0, "cast": 90.0}
    first, second = readers(2, "a:relu"), readers(2, "b:relu")
    renamed = {key.replace("fc", "other"): known for key, known in second.sites.items()}
    plan = dispatch(Profile({**first.sites, **renamed}), options=Options(recipes=("int8_rowwise",)))
    assert len(plan.decisions) == 4 and plan.lowered == []
    assert len(dispatch(readers(4), options=Options(recipes=("int8_rowwise",))).lowered) == 4


def test_a_transposed_reader_needs_another_row_scale(times):
    times |= {"int8_rowwise/aten": 60.0, "cast": 70.0}
    profile = readers(3)
    flip = lambda known: replace(known, site=replace(known.site, lhs=replace(known.site.lhs, flipped=True)))  # noqa: E731
    sites = {key: flip(known) if key == "fc0#0:output" else known for key, known in profile.sites.items()}
    assert dispatch(Profile(sites), options=Options(recipes=("int8_rowwise",), min_speedup=1.1)).lowered == []


def test_a_producer_that_emits_low_precision_makes_it_nearly_free():
    """On an H100 a product of this size pays for FP8 after a ReLU, and not after an embedding."""
    sizes = (1, 4096, 1024, 1024)
    known = profiled(sizes, static_rhs=True)
    cost = {}
    for producer in ("relu.default", "embedding.default"):
        site = replace(known.site, lhs=Operand("x", producer))
        decision = decide(replace(known, site=site), recipes=("fp8_rowwise",), min_speedup=0)
        cost[producer] = decision.score.time_us / decision.before.time_us
    assert cost["relu.default"] < 0.85 * cost["embedding.default"]


def test_a_gradient_is_looked_at_once_where_both_its_products_are_in_fp8():
    """fuse_cast.py quantizes it by rows and by columns in one op; of another format it is looked at twice."""
    rows, wide = 65536, 2048
    g = Operand("g", "mul.Tensor")
    back = profiled((1, rows, wide, wide)), profiled((1, wide, wide, rows))
    grad_input = replace(back[0].site, key="fc#0:grad_input", role="grad_input", gradient="lhs", lhs=g)
    grad_weight = replace(
        back[1].site, key="fc#0:grad_weight", role="grad_weight", gradient="lhs", lhs=replace(g, flipped=True)
    )
    both = [replace(known, site=site) for known, site in zip(back, (grad_input, grad_weight), strict=True)]

    def us(sites, scores=None):
        known = {each.site.key: each for each in sites}
        known["fc#0:grad_weight"] = both[1]
        if scores is not None:
            known["fc#0:grad_input"] = replace(both[0], scores=scores)
        options = Options(target="h100", recipes=("fp8_rowwise",), min_speedup=1e-9)
        return dispatch(Profile(known), options=options).decisions["fc#0:grad_weight"].score.time_us

    look = 2 * rows * wide / (3.35e12 * 0.92) * 1e6 + 2
    assert us([]) - us(both) == pytest.approx(look)
    assert us(both, scores={}) == pytest.approx(us([]))


# ---------------------------------------------------------------- why the others do not


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


# ---------------------------------------------------------------- time for less noise


def choices_of(*rows):
    """(name, us, noise) of one site's choices."""
    return [cut.Choice(KEPT if name == "keep" else Candidate(name, "aten"), us, (), noise) for name, us, noise in rows]


def test_a_little_time_goes_where_it_takes_most_noise():
    spare = 1000 * together.SPARE
    quiet, loud = ("bf16", 100 + 0.9 * spare, 1e-6), ("int8_rowwise", 100, 1e-3)
    other = [("fp16", 900 + 0.9 * spare, 1e-6), ("int8_rowwise", 900, 1e-5)]
    picks = together.pick(cut.Problem({"a": choices_of(loud, quiet), "b": choices_of(*other)}, {}))
    assert {key: pick.recipe for key, pick in picks.items()} == {"a": "bf16", "b": "int8_rowwise"}


def test_no_more_time_than_there_is_to_spare():
    dear = ("bf16", 100 * (1 + 1.1 * together.SPARE), 1e-9)
    picks = together.pick(cut.Problem({"a": choices_of(("int8_rowwise", 100, 1e-3), dear)}, {}))
    assert picks["a"].recipe == "int8_rowwise"


def test_noise_neither_keeps_a_site_nor_lowers_one():
    keep_wins = choices_of(("bf16", 100.1, 1e-9), ("keep", 100, 0.0))
    lowered_wins = choices_of(("int8_rowwise", 100, 1e-3), ("keep", 100.1, 0.0))
    picks = together.pick(cut.Problem({"a": keep_wins, "b": lowered_wins}, {}))
    assert picks["a"] == KEPT and picks["b"].recipe == "int8_rowwise"
