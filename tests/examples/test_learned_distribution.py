"""What the probe is for: on a real trained model, inputs drawn from N(0, 1) decide wrongly, learned ones do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import loka_compile as loka
from examples import movielens, training
from examples.models.dcnv2 import DCNv2
from loka_compile.probe.low_rank import LowRank
from loka_compile.probe.pairs import estimate
from loka_compile.probe.profile import Profile
from loka_compile.spec.decision import KEPT
from loka_compile.spec.recipes import RECIPES

UNDERFLOWS = "cross.1.linear#0:grad_weight"
"""Its gradient lies below what fp16 can hold."""
EASY = "deep.0.0#0:grad_input"
"""Large and small rows of a gradient times a small weight: easier for one scale a tensor than white noise."""


@pytest.fixture(scope="module")
def learned():
    """The profile of one training step of a DCNv2 that has seen 16,384 ratings."""
    try:
        data = movielens.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = DCNv2(data.cardinalities, data.genres, width=32, layers=2, deep=(128,))
    part = data.train[-16_384:]
    for _ in training.train(model, part, epochs=1):
        pass
    model.train()
    step = part[:2048]
    with loka.probe(model) as probe:
        binary_cross_entropy_with_logits(model(step.ids, step.genres), step.labels).backward()
    torch._dynamo.reset()
    return probe.profile


@pytest.fixture(scope="module")
def guessed(learned):
    """The same sites, scored on operands of N(0, 1)."""

    def white(stats):
        features = stats.distribution.features
        noise = LowRank(torch.zeros(features), torch.zeros(0, features).bfloat16(), torch.ones(features))
        return replace(stats, distribution=noise, amax=0.0)

    sites = {}
    for key, known in learned.sites.items():
        lhs, rhs, generator = white(known.lhs), white(known.rhs), torch.Generator().manual_seed(0)
        drawn = estimate(known.site, lhs, rhs, list(RECIPES.values()), known.observed, generator)
        sites[key] = replace(known, lhs=lhs, rhs=rhs, scores={}, drawn=drawn)
    return Profile(sites)


def decide(profile, site, recipe):
    """At the default error budgets, whatever the speed."""
    options = loka.Options(target="h100", recipes=(recipe,), min_speedup=0)
    return loka.dispatch(profile, options=options).decisions[site]


def test_a_gradient_that_underflows_in_fp16_is_kept(learned, guessed):
    assert decide(guessed, UNDERFLOWS, "fp16").chosen.recipe == "fp16"
    decision = decide(learned, UNDERFLOWS, "fp16")
    assert decision.chosen == KEPT and "MERE" in decision.reason
    real = learned.sites[UNDERFLOWS].scores["fp16"]  # on the step's own operands
    assert real.mere > 0.2 and guessed.sites[UNDERFLOWS].error("fp16").mere < 0.01


def test_a_gradient_that_is_easy_in_fp8_is_not_refused(learned, guessed):
    assert decide(guessed, EASY, "fp8_tensorwise").chosen == KEPT
    decision = decide(learned, EASY, "fp8_tensorwise")
    assert decision.chosen.recipe == "fp8_tensorwise"
    assert learned.sites[EASY].scores["fp8_tensorwise"].mere < 0.2


def test_drawn_operands_agree_with_real_ones(learned):
    """At the sites of both decisions the drawn pairs alone would have decided alike."""
    for site, recipe in ((UNDERFLOWS, "fp16"), (EASY, "fp8_tensorwise")):
        known = learned.sites[site]
        within = [error.mere <= 0.2 for error in (known.scores[recipe], known.drawn[recipe].cautious)]
        assert within[0] == within[1]
