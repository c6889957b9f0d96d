"""The search: bounds kept, slow models never trained, pruned by the score, and it goes on from its file."""

from __future__ import annotations

import itertools
import math
import threading

import pytest

optuna = pytest.importorskip("optuna")
from examples.lattice.sketch import search as module  # noqa: E402
from examples.lattice.sketch.search import Between, Bounds, Cost, NothingFits, score, search  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"width": (8, 16, 32, 64, 128), "layers": Between(1, 4, whole=True), "rate": Between(1e-4, 1e-1, log=True)}
BOUNDS = Bounds(quality=0.7, latency=0.04)


def cost(values):
    flops = 2.0 * values["width"] ** 2 * values["layers"]
    return Cost(flops, flops * 1e-6)


def auc_of(values, rate=None):
    """Wider is better, ever less so; rates near 0.01 train best."""
    off = abs(math.log10(rate or values["rate"]) + 2)
    return 0.8 - 0.5 / values["width"] - 0.02 / values["layers"] - 0.03 * off


def quality(values, report):
    for step in range(3):
        report(step, auc_of(values) - 0.05 * (2 - step))
    return auc_of(values)


def best_there_is():
    """By trying all widths and layers at the best rate."""
    found = []
    for width, layers in itertools.product(SPACE["width"], range(1, 5)):
        values = {"width": width, "layers": layers}
        auc, of = auc_of(values, 0.01), cost(values)
        if auc >= BOUNDS.quality and of.seconds <= BOUNDS.latency:
            found.append(score(auc, of.flops))
    return max(found)


def test_it_comes_near_the_best_within_the_bounds():
    found = search(cost, quality, SPACE, BOUNDS, trials=60, seed=1)
    assert found.auc >= BOUNDS.quality and found.cost.seconds <= BOUNDS.latency
    assert found.score == pytest.approx(score(found.auc, found.cost.flops)) and found.score > best_there_is() - 0.006
    assert found.auc == pytest.approx(auc_of(found.values)) and found.tried == 60
    assert found.trained < 60  # some were too slow, some fell behind


def test_what_is_too_slow_is_never_trained():
    trained = []

    def noted(values, report):
        trained.append(cost(values).seconds)
        return auc_of(values)

    search(cost, noted, SPACE, BOUNDS, trials=40)
    assert 0 < len(trained) < 40 and max(trained) <= BOUNDS.latency


def test_a_search_goes_on_from_its_file(tmp_path):
    storage, calls = tmp_path / "trials.db", []

    def counted(values, report):
        calls.append(values)
        return quality(values, report)

    search(lambda values: Cost(cost(values).flops, 0.0), counted, SPACE, BOUNDS, trials=8, storage=storage)
    assert len(calls) == 8

    def dies(values, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(lambda values: Cost(cost(values).flops, 0.0), dies, SPACE, BOUNDS, trials=12, storage=storage)
    found = search(lambda values: Cost(cost(values).flops, 0.0), counted, SPACE, BOUNDS, trials=12, storage=storage)
    assert len(calls) == 12 and found.tried == 12  # neither lost nor repeated; the one that died is none
    again = search(lambda values: Cost(cost(values).flops, 0.0), counted, SPACE, BOUNDS, trials=12, storage=storage)
    assert len(calls) == 12 and again == found


def test_trials_run_in_parallel():
    both = threading.Barrier(2, timeout=60)

    def together(values, report):
        both.wait()  # passes only if two are under way
        return auc_of(values)

    found = search(lambda values: Cost(cost(values).flops, 0.0), together, SPACE, Bounds(0.0, 1.0), trials=4, jobs=2)
    assert found.tried == found.trained == 4


def test_a_training_that_diverges_is_pruned():
    def diverges(values, report):
        report(0, float("nan"))
        raise AssertionError("went on")

    with pytest.raises(NothingFits, match=r"none of 3 trials has an AUC of 0.7 .* 0 were quick enough and trained"):
        search(lambda values: Cost(1.0, 0.0), diverges, SPACE, BOUNDS, trials=3)


def test_ranges_and_scores():
    with pytest.raises(ValueError, match="low <= high"):
        Between(2, 1)
    with pytest.raises(ValueError, match="positive with log"):
        Between(0, 1, log=True)
    assert score(0.8, 2e6) == pytest.approx(score(0.8, 1e6) * 2**-module.EXPONENT)
