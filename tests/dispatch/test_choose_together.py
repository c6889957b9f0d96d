"""Dispatch looks at all sites together: casts are shared, and spare time goes where it takes most noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loka_compile.dispatch import cut, together
from loka_compile.dispatch.choose import dispatch
from loka_compile.probe.profile import Profile
from loka_compile.spec.decision import KEPT, Candidate
from loka_compile.spec.options import Options
from loka_compile.spec.site import Operand
from tests.dispatch.one_site import decide, profiled


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
