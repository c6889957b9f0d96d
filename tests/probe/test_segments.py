"""Errors by segment: whose rows are whose, what a minority loses that the mean does not show, and what is refused."""

import math

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loka_compile as loka
from loka_compile.probe.score import ErrorScore, emulate, product, score
from loka_compile.probe.segments import FEW, ROWS, Labels, SegmentScore, Watch, rows_dim, unsafe
from loka_compile.spec.error_budget import DEFAULT
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site

GENERATOR = torch.Generator().manual_seed(0)


def site(role="output"):
    return Site("fc#0:output", "mm", role, *map(sympy.Integer, (1, 4, 4, 4)), torch.float32)


def watching(labels, recipes=("fp8_tensorwise",)):
    watch = Watch(lambda: labels, {}, 64, 0)
    watch.begin((), {})
    return watch, [RECIPES[name] for name in recipes]


# ---------------------------------------------------------------- whose rows are whose


@pytest.mark.parametrize(
    ("role", "shape", "dim"),
    [
        ("output", (8, 5), 0),
        ("output", (24, 5), 0),  # three rows a row of the batch
        ("output", (16, 3, 5), 0),  # two products a row
        ("output", (3, 8, 5), 1),  # experts over one batch
        ("output", (7, 5), None),
        ("output", (0, 5), None),
        ("grad_weight", (5, 16), -1),
        ("grad_weight", (5, 7), None),
        ("grad_weight", (8, 5, 8), None),
    ],
)
def test_the_dimension_of_the_batch(role, shape, dim):
    assert rows_dim(site(role), torch.empty(shape), 8) == dim


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_minority_that_a_shared_scale_wipes_out(repeats):
    """A tenth of a percent of the rows, six orders of magnitude smaller: fp8_tensorwise leaves nothing of them."""
    torch.manual_seed(0)
    labels = (torch.arange(4096) % 1024 == 0).long()
    x = torch.randn(4096 * repeats, 32) * torch.where(labels == 1, 1e-6, 1.0).repeat_interleave(repeats)[:, None]
    weight = torch.randn(32, 64)
    watch, recipes = watching({"country": labels}, ("fp8_tensorwise", "fp8_rowwise"))
    amax = x.abs().max().item(), weight.abs().max().item()
    found = watch.scores(site(), x, weight, recipes, amax, GENERATOR)
    assert found["country=1"].rows == 4 and found["country=0"].rows >= ROWS
    few, many = (found[name].scores["fp8_tensorwise"].mere for name in ("country=1", "country=0"))
    assert few > 0.9 and many < 0.2
    assert found["country=1"].scores["fp8_rowwise"].mere < 0.2
    overall = score(emulate(recipes[0], x, weight), product(x, weight))
    assert overall.mere < 0.2 and overall.sqnr_db > 20  # the mean shows nothing


def test_in_a_sum_over_the_batch_its_own_terms_count():
    torch.manual_seed(0)
    labels = torch.arange(512) % 64 == 0
    x, gradient = torch.randn(16, 512), torch.randn(512, 24) * torch.where(labels, 1e-5, 1.0)[:, None]
    watch, recipes = watching({"rare": labels}, ("fp8_tensorwise", "bf16"))
    found = watch.scores(site("grad_weight"), x, gradient, recipes, None, GENERATOR)
    assert {name: each.rows for name, each in found.items()} == {"rare=False": 504, "rare=True": 8}
    assert found["rare=True"].scores["fp8_tensorwise"].mere > 0.5 > 0.1 > found["rare=True"].scores["bf16"].mere


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(RECIPES)))
def test_terms_that_are_kept_and_those_that_are_not_add_up(seed, name):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(6, 40, generator=generator), torch.randn(40, 5, generator=generator)
    keep = torch.rand(40, generator=generator) < 0.5
    parts = emulate(RECIPES[name], a, b, keep=keep) + emulate(RECIPES[name], a, b, keep=~keep)
    torch.testing.assert_close(parts, emulate(RECIPES[name], a, b), rtol=2e-2, atol=5e-2)


# ---------------------------------------------------------------- sums over calls


def test_scores_of_calls_are_averaged_by_rows():
    one = SegmentScore(1, {"fp16": ErrorScore(0.1, 20.0, 0.1)})
    joined = one.joined(SegmentScore(3, {"fp16": ErrorScore(0.5, math.inf, 0.1)}))
    assert joined.rows == 4 and joined.scores["fp16"].mere == pytest.approx(0.4)
    assert joined.scores["fp16"].sqnr_db == pytest.approx(20 + 10 * math.log10(4))
    assert SegmentScore().joined(one) == one
    hopeless = SegmentScore(1, {"fp16": ErrorScore(math.inf, -math.inf, 1.0)})
    assert one.joined(hopeless).scores["fp16"].mere == math.inf
    assert one.joined(hopeless).scores["fp16"].sqnr_db < -1000


def test_the_worst_segment_with_enough_rows_speaks():
    bad, worse = (SegmentScore(FEW, {"fp16": ErrorScore(mere)}) for mere in (0.3, 0.4))
    few = SegmentScore(FEW - 1, {"fp16": ErrorScore(9.0)})
    assert unsafe({"a": bad, "b": worse, "c": few}, "fp16", DEFAULT)[0] == "b"
    assert unsafe({"c": few}, "fp16", DEFAULT) is None
    assert unsafe({"a": bad}, "bf16", DEFAULT) is None


# ---------------------------------------------------------------- a probe


@pytest.fixture(scope="module")
def probed():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    countries = []

    def labels_of(x):
        countries.append(["NZ" if i % 100 == 0 else "US" for i in range(len(x))])
        return {"country": countries[-1]}

    with loka.probe(model, segments=labels_of, production={"country": {"US": 0.99, "NZ": 0.01}}) as probe:
        for rows in (400, 300):
            model(torch.randn(rows, 16)).sum().backward()
    torch._dynamo.reset()
    return probe.profile


def test_every_gemm_over_the_batch_is_scored_by_segment(probed):
    assert len(probed.sites) == 5
    for known in probed.sites.values():
        assert list(known.segments) == ["country=NZ", "country=US"]
        assert known.segments["country=NZ"].rows == 7 and set(known.segments["country=NZ"].scores) == set(RECIPES)


def test_the_profile_says_whom_it_saw(probed):
    assert probed.source.rows == 700 and probed.source.shares == {"country": {"NZ": 0.01, "US": 0.99}}
    assert probed.source.assess(0.9).verdict == "accept"


def test_a_probe_without_labels_knows_nothing_of_segments():
    model = nn.Linear(8, 8)
    with loka.probe(model) as probe, torch.no_grad():
        model(torch.randn(4, 8))
    assert probe.profile.source is None and not any(known.segments for known in probe.profile.sites.values())


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "a label for every row of the batch"),
        ({"a": []}, "a label for every row of the batch"),
        ({}, "a label for every row of the batch"),
        ({"a": torch.rand(3)}, "'a' must be one integer or string a row"),
        ({"a": torch.zeros(3, 2, dtype=torch.int64)}, "'a' must be one integer or string a row"),
        ({"a": torch.arange(100)}, "'a' has 100 values in one batch.*buckets"),
    ],
)
def test_what_cannot_be_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        Labels(labels)


def test_production_without_labels_is_refused():
    with pytest.raises(ValueError, match="give segments="):
        loka.probe(nn.Linear(2, 2), production={"country": {"US": 1.0}})
    watch = Watch(lambda: {"device": [1]}, {"country": {"US": 1.0}}, 8, 0)
    watch.begin((), {})
    with pytest.raises(ValueError, match=r"shares of \['country'\]; the rows are labelled by \['device'\]"):
        watch.source()
