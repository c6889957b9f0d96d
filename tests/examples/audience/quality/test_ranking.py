"""Places of sources, and how sure they are."""

import numpy as np
import pytest

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.fitted import fitted
from examples.audience.quality.methods import constrained_regression, marginal_agreement
from examples.audience.quality.ranking import ranking
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import joined, simulate


def sources(accuracies, campaigns, size):
    """Sources of two categories, each with campaigns of its own, whose tags are as often right as asked."""
    found = {}
    for seed, (name, right) in enumerate(accuracies.items()):
        truth = np.array([[0.5, 0.5], [right, 1 - right], [1 - right, right]])
        found[name] = constrained_regression(simulate(truth, campaigns, size, seed), Bootstrap(200, seed=7))
    return found


def test_sources_far_apart_have_certain_places():
    places = ranking(sources({"b": 0.75, "a": 0.95, "c": 0.55}, 60, 5000))
    assert [place.source for place in places] == ["a", "b", "c"]
    assert [(p.rank.low, p.rank.value, p.rank.high) for p in places] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert [place.best for place in places] == [1, 0, 0]


def test_sources_alike_have_uncertain_places():
    places = ranking(sources({"a": 0.8, "b": 0.8, "c": 0.8}, 20, 200))
    assert all(place.rank.high - place.rank.low >= 1 for place in places)
    assert max(place.best for place in places) < 0.95


def test_what_cannot_be_ranked_is_an_error():
    made = sources({"a": 0.8, "b": 0.7}, 20, 200)
    data = Campaigns.of(np.ones((3, 3)), np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="no sources"):
        ranking({})
    with pytest.raises(ValueError, match=r"\['b'\] have no score 'accuracy'.*agreement"):
        ranking({"a": made["a"], "b": marginal_agreement(data)})
    with pytest.raises(ValueError, match=r"\[4, 201\]"):
        ranking({"a": made["a"], "b": constrained_regression(data, Bootstrap(3))})


def test_a_source_that_no_assumption_fits_is_not_ranked_as_sure():
    turned = [np.array([[0.5, 0.5], [right, 1 - right], [1 - right, right]]) for right in (0.95, 0.55)]
    data = joined([simulate(q, 20, 2000, seed) for seed, q in enumerate(turned)])
    found = sources({"a": 0.8, "b": 0.7}, 40, 2000) | {"odd": fitted(data, Bootstrap(200, seed=7))}
    places = ranking(found)
    assert [place.source for place in places] == ["a", "b", "odd"] and [p.sure for p in places] == [True, True, False]
    odd = found["odd"].scores["accuracy"]
    assert odd.low < 0.7 and places[2].best is None and (places[2].rank.low, places[2].rank.high) == (1, 3)
    assert (places[0].rank.low, places[0].rank.high) == (1, 2)  # odd may be better than a, b is not
    assert places[0].best is None
