"""The search: bounds kept, slow models never trained, pruned by the score, and it goes on from its file."""

from __future__ import annotations

import itertools
import math
import threading
from contextlib import nullcontext

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


class Interrupted:
    """A training that is interrupted at its n-th call, and all that it was called with."""

    def __init__(self, at=None):
        self.at, self.calls = at, []

    def __call__(self, values, report):
        self.calls.append(tuple(values.items()))
        if len(self.calls) == self.at:
            raise KeyboardInterrupt
        return quality(values, report)


def test_a_search_that_stopped_proposes_what_one_that_did_not_would_have(tmp_path):
    bounds, trials = Bounds(0.0, 1.0), 16  # from the eleventh on TPE learns
    whole, again = Interrupted(), Interrupted()
    found = search(cost, whole, SPACE, bounds, trials=trials, seed=3)
    assert search(cost, again, SPACE, bounds, trials=trials, seed=3) == found and again.calls == whole.calls
    assert len(set(whole.calls)) == trials
    storage, calls = tmp_path / "trials.db", []
    for until, at in ((1, None), (4, 2), (5, None), (14, 7), (trials, 1), (trials, None)):
        parts = Interrupted(at)
        with pytest.raises(KeyboardInterrupt) if at else nullcontext():
            stopped = search(cost, parts, SPACE, bounds, trials=until, storage=storage, seed=3)
        calls += parts.calls
    assert list(dict.fromkeys(calls)) == whole.calls and len(calls) == trials + 3  # what was interrupted comes again
    assert stopped == found
    other = Interrupted()
    search(cost, other, SPACE, bounds, trials=3, seed=4)
    assert not set(other.calls) & set(whole.calls)


def test_restarts_repeat_nothing(tmp_path):
    calls = Interrupted()
    for trials in range(1, 13):
        search(cost, calls, SPACE, Bounds(0.0, 1.0), trials=trials, storage=tmp_path / "trials.db")
    assert len(calls.calls) == len(set(calls.calls)) == 12


@pytest.mark.parametrize("jobs", [1, 2])
def test_values_whose_training_raised_are_not_tried_again(tmp_path, jobs):
    calls = []

    def raises_once(values, report):
        calls.append(tuple(values.items()))
        if len(calls) == 2:
            raise MemoryError("too large")
        return quality(values, report)

    args = {"trials": 4, "storage": tmp_path / "trials.db", "jobs": jobs}
    with pytest.raises(MemoryError, match="too large"):
        search(cost, raises_once, SPACE, Bounds(0.0, 1.0), **args)
    found = search(cost, raises_once, SPACE, Bounds(0.0, 1.0), **args)
    assert found.tried == 4 and len(calls) == len(set(calls)) == 5


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
    with pytest.raises(ValueError, match="whole numbers as low and high"):
        Between(0.5, 2, whole=True)
    for flops, seconds in ((0.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, -1.0)):
        with pytest.raises(ValueError, match="expected flops above 0 and seconds of 0 or more"):
            Cost(flops, seconds)
    for bounds in ((math.nan, 1.0), (0.5, math.nan)):
        with pytest.raises(ValueError, match="expected numbers as bounds"):
            Bounds(*bounds)
    for wrong in ({"trials": 0}, {"trials": 1, "jobs": 0}):
        with pytest.raises(ValueError, match="expected one trial or more and one job or more"):
            search(cost, quality, SPACE, BOUNDS, **wrong)
    assert score(0.8, 2e6) == pytest.approx(score(0.8, 1e6) * 2**-module.EXPONENT)
