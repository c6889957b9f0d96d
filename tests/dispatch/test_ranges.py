"""Dynamic batch: times as expressions, crossovers where they are, and few of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loka_compile as loka
from loka_compile.dispatch import choose, roofline
from loka_compile.dispatch.candidates import fit, fits_of
from loka_compile.dispatch.choose import dispatch
from loka_compile.dispatch.errors import screen
from loka_compile.dispatch.prices import clock_of, price
from loka_compile.dispatch.ranges import Batch, batch_of, changes, few, line, measured_at, numbers, over_batches, ranges
from loka_compile.probe.profile import Profile
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.decision import KEPT, Candidate, Range
from loka_compile.spec.options import Options
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import TARGETS

S, T = (sympy.Symbol(name, integer=True, positive=True) for name in ("s77", "s12"))
INT8, BF16, FP8 = (Candidate(recipe, "aten") for recipe in ("int8_rowwise", "bf16", "fp8_rowwise"))
GOOD = ErrorScore(0.02, 40.0, 0.01)


def profiled(M=S, observed=256, key="fc#0:output", N=512, K=512, dtype=torch.float32):
    sizes = (sympy.Integer(1), sympy.sympify(M), sympy.Integer(N), sympy.Integer(K))
    site = Site(key, "mm", "output", *sizes, dtype, static_rhs=True)
    scores = dict.fromkeys(RECIPES, GOOD)
    return SiteProfile(site, 1, OperandStats(), OperandStats(), scores, {}, (1, observed, N, K))


def profile_of(*known):
    return Profile({each.site.key: each for each in known})


def priced(profile, options, clock):
    """The sites of a profile with their times at the sizes that were observed."""
    hardware = TARGETS[options.target]
    sites = {
        key: screen(known, fits_of(known.site, hardware, options), options) for key, known in profile.sites.items()
    }
    return price(sites, clock, options)


# ---------------------------------------------------------------- the batch


def test_the_batch_is_the_one_symbol_of_all_sizes():
    assert batch_of(profile_of(profiled(), profiled(26 * S, 26 * 256, "other#0:output"))) == Batch(S, 256)


@pytest.mark.parametrize(
    "known",
    [
        [profiled(256)],  # numbers
        [profiled(S), profiled(T, key="other#0:output")],  # two symbols
        [profiled(S + 3)],  # not in proportion
        [],
    ],
)
def test_no_batch(known):
    assert batch_of(profile_of(*known)) is None


def test_a_profile_from_a_file_knows_its_batch(tmp_path):
    profile_of(profiled(), profiled(26 * S, 26 * 256, "other#0:output")).save(tmp_path / "a.profile")
    assert batch_of(loka.load_profile(tmp_path / "a.profile")) == Batch(S, 256)


# ---------------------------------------------------------------- times


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.1, 1e6)), min_size=1, max_size=5, unique_by=lambda p: p[0])
)
def test_a_line_goes_through_its_points_and_keeps_ratios_beyond_them(points):
    points.sort()
    expression = line(S, *zip(*points, strict=True))
    assert expression.free_symbols <= {S}
    for x, y in points:
        assert float(expression.subs(S, x)) == pytest.approx(y)
    (first, low), (last, high) = points[0], points[-1]
    assert float(expression.subs(S, max(1, first // 2))) == pytest.approx(low)
    assert float(expression.subs(S, 3 * last)) == pytest.approx(3 * high)
    for (a, ya), (b, yb) in itertools.pairwise(points):
        between = float(expression.subs(S, (a + b) // 2))
        assert min(ya, yb) * 0.999 <= between <= max(ya, yb) * 1.001


@pytest.mark.parametrize("here", [1, 2, 5, 60, 64, 900, 1024, 4096, 100_000])
def test_what_is_measured(here):
    points = measured_at(here)
    assert points == sorted(set(points)) and here in points and points[-1] >= 1024
    assert all(b / a >= 1.5 for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("target", ["h100", "mi300x"])
def test_modelled_times_are_the_roofline_at_every_batch(target):
    known, options = profiled(26 * S, 26 * 256, dtype=torch.bfloat16), Options(target=target)
    hardware = TARGETS[target]
    sites = priced(profile_of(known), options, clock_of(hardware))
    at = numbers(over_batches(sites, Batch(S, 256), clock_of(hardware), options), S)
    for batch in (1, 3, 256, 5000, 10**6):
        there, sizes = at(batch)[known.site.key], Sizes(1, 26 * batch, 512, 512)
        assert there.keep_us == pytest.approx(roofline.keep_us(known.site, sizes, hardware))
        assert there.costs
        for candidate, cost in there.costs.items():
            alone = roofline.cost(there.screened.fits[candidate], sizes, hardware)
            assert cost.alone_us == pytest.approx(alone.alone_us)


# ---------------------------------------------------------------- crossovers


@settings(deadline=None)
@given(st.lists(st.integers(3, 3000), max_size=4, unique=True).map(sorted), st.integers(2001, 4096))
def test_bisection_finds_where_the_choice_changes(steps, high):
    """Wherever two neighbouring powers of two differ, and no batch where nothing changes is named."""
    pick = lambda batch: {"fc": sum(step <= batch for step in steps)}  # noqa: E731
    found = changes(pick, 2, high)
    assert all(pick(batch) != pick(batch - 1) for batch in found)
    assert found == [step for step in steps if step <= high]  # counting up, so that no change hides another


def test_the_crossover_of_two_straight_lines(times_of_rows):
    plan = dispatch(profile_of(profiled()), options=Options(recipes=("int8_rowwise",)))
    decision = plan.decisions["fc#0:output"]
    # keep is linear between the points it is measured at, and so is int8: 1.05 (100 + 0.1 rows) = rows
    crossover = math.ceil(105 / (1 - 0.105))
    assert decision.ranges == (Range(0, KEPT), Range(crossover, INT8)) and decision.chosen == INT8


def test_rows_are_the_sites_own(times_of_rows):
    """A site with 26 rows a row of the batch crosses over at a smaller batch, in rows of its own."""
    times_of_rows["int8_rowwise"] = lambda rows: 300 + 0.1 * rows
    options = Options(recipes=("int8_rowwise",))
    plan = dispatch(profile_of(profiled(), profiled(26 * S, 26 * 256, "wide#0:output")), options=options)
    wide = plan.decisions["wide#0:output"].ranges
    assert [each.chosen for each in wide] == [KEPT, INT8] and wide[1].rows == 26 * math.ceil(315 / (26 - 2.73))


def test_no_ranges_where_one_choice_holds_throughout(times_of_rows):
    times_of_rows["int8_rowwise"] = lambda rows: 0.1 * rows
    plan = dispatch(profile_of(profiled()), options=Options(recipes=("int8_rowwise",)))
    assert plan.decisions["fc#0:output"].ranges == () and plan.decisions["fc#0:output"].lowered


def test_where_speed_is_no_matter_there_are_no_ranges():
    plan = dispatch(profile_of(profiled(dtype=torch.bfloat16)), options=Options(target="h100", min_speedup=0))
    assert not plan.decisions["fc#0:output"].ranges


def test_a_modelled_crossover_on_a_gpu():
    """Small products on an H100 are bound by their launch, and stay; large ones go to FP8."""
    known = profiled(dtype=torch.bfloat16, N=1024, K=1024)
    options, clock = Options(target="h100"), clock_of(TARGETS["h100"])
    own = ranges(priced(profile_of(known), options, clock), Batch(S, 256), clock, options)["fc#0:output"]
    assert own[-1].chosen.recipe == "fp8_rowwise" and 1 < len(own) <= 4
    for each in own:
        here = profiled(max(each.rows, 2), max(each.rows, 2), dtype=torch.bfloat16, N=1024, K=1024)
        assert dispatch(profile_of(here), options=Options(target="h100")).decisions["fc#0:output"].chosen == each.chosen


def test_a_cast_beside_the_form_by_rows_has_a_time_at_every_batch():
    """A gradient's two products share what looks at it (fuse_cast.py); the batch is a multiple of 16 by its symbol."""
    rows, wide, options = 16 * S, 2048, Options(target="h100", recipes=("fp8_rowwise",))
    g = Operand("g", "mul.Tensor")
    grad_input = profiled(rows, 65536, "fc#0:grad_input", wide, wide, torch.bfloat16)
    grad_weight = profiled(wide, wide, "fc#0:grad_weight", wide, wide, torch.bfloat16)
    site = replace(grad_input.site, role="grad_input", gradient="lhs", lhs=g, static_rhs=False)
    late = replace(g, flipped=True)
    back = replace(grad_weight.site, role="grad_weight", gradient="lhs", lhs=late, static_rhs=False, K=rows)
    sites = [
        replace(grad_input, site=site),
        replace(grad_weight, site=back, observed=(1, wide, wide, 65536)),
    ]
    plan = dispatch(profile_of(*sites), options=options)
    assert [each.chosen for each in plan.decisions["fc#0:grad_input"].ranges] == [KEPT, FP8]
    hardware, clock = TARGETS["h100"], clock_of(TARGETS["h100"])
    at = numbers(over_batches(priced(profile_of(*sites), options, clock), Batch(S, 4096), clock, options), S)
    found = at(4096)["fc#0:grad_weight"].costs[FP8].casts
    fixed = roofline.cost(fit(FP8, back, hardware), Sizes(1, wide, wide, 65536), hardware).casts
    assert [each.beside_us for each in found] == pytest.approx([each.beside_us for each in fixed])
    assert all(each.beside_us > 0 for each in found)


# ---------------------------------------------------------------- few


def us_of(costs):
    """us(picks, batch) where the pick `p` is best and any other loses costs[p]."""
    best = {2: "a", 10: "b", 100: "c", 1000: "d", 5000: "e"}

    def us(picks, batch):
        right = best[max(start for start in best if start <= batch)]
        return 1.0 if picks["fc"] == right else 1.0 + costs[right]

    return us, [(start, {"fc": name}) for start, name in best.items()]


def test_the_least_useful_interval_goes():
    us, intervals = us_of(dict(a=0.5, b=0.5, c=0.1, d=0.5, e=0.5))
    assert [picks["fc"] for _, picks in few(intervals, 20_000, 3, us, most=4)] == ["a", "b", "d", "e"]


def test_what_is_worth_nothing_goes_even_where_there_is_room():
    us, intervals = us_of(dict(a=0.5, b=0.001, c=0.001, d=0.5, e=0.001))
    assert [picks["fc"] for _, picks in few(intervals, 20_000, 3, us, most=9)] == ["a", "d"]


def test_a_small_batch_has_to_gain_more_than_a_large_one():
    us, intervals = us_of(dict(a=0.15, b=0.15, c=0.001, d=0.25, e=0.15))
    assert [picks["fc"] for _, picks in few(intervals, 20_000, 3_000, us)] == ["d", "e"]
    us, intervals = us_of(dict(a=0.25, b=0.15, c=0.001, d=0.25, e=0.02))
    assert [picks["fc"] for _, picks in few(intervals, 20_000, 3_000, us)] == ["a", "d"]


def test_a_kernel_that_lost_far_at_one_batch_is_out_at_all(times_of_rows):
    times_of_rows["lost"] = lambda fit, sizes: "lost" if fit.recipe.name == "bf16" and sizes.M > 64 else ""
    times_of_rows["bf16"] = lambda rows: 0.01 * rows
    options, clock = Options(recipes=("bf16", "int8_rowwise")), choose.clock_of(TARGETS["cpu"])
    sites = priced(profile_of(profiled()), options, clock)
    (found,) = over_batches(sites, Batch(S, 256), clock, options).values()
    assert list(found.costs) == [INT8] and found.rejected[BF16] == "lost"


def test_the_batch_at_hand_keeps_its_choice():
    us, intervals = us_of(dict.fromkeys("abcde", 0.001))
    assert few(intervals, 20_000, 300, us) == [(2, {"fc": "c"})]
