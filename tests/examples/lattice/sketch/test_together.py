"""One loop over sizes and shardings: as good as trying all of both, and what does not fit is never trained."""

from __future__ import annotations

import math
from itertools import product

import pytest

from examples.lattice.sketch.layers import Cluster, Part, change_of, layers_of
from examples.lattice.sketch.search import Bounds, NothingFits, score
from examples.lattice.sketch.sharding import ShardingError
from examples.lattice.sketch.together import alike, search_together

CLUSTER = Cluster(gpus=4, link=1e6, start=1e-4, memory=12_000)
WIDTHS = (100, 300, 900, 2500)


def parts(values):
    width = values["width"]
    its = [Part("a", 1e-3, tables=200, weights=width, vectors=400), Part("b", 2e-3, weights=width // 2)]
    return 1000.0 * width, its


def auc(width):
    return 0.6 + 0.02 * math.log(width)


def by_hand(width, latency):
    """The fastest step of this width that fits, by trying everything; None if none does in time."""
    layers, change, steps = layers_of(parts({"width": width})[1], CLUSTER), change_of(CLUSTER), []
    for way in product(*(layer.seconds for layer in layers)):
        memory = sum(layer.memory[s] for layer, s in zip(layers, way, strict=True))
        seconds = sum(layer.seconds[s] for layer, s in zip(layers, way, strict=True))
        seconds += sum(change(i, way[i - 1], way[i]) for i in range(1, len(way)))
        if memory <= CLUSTER.memory and seconds <= latency:
            steps.append(seconds)
    return min(steps, default=None)


@pytest.mark.parametrize("latency", [0.006, 0.02])
def test_is_as_good_as_trying_all_sizes_and_shardings(latency):
    trained = []

    def quality(values, report):
        trained.append(values["width"])
        return auc(values["width"])

    found = search_together(parts, quality, {"width": WIDTHS}, Bounds(0.0, latency), CLUSTER, trials=30)
    steps = {width: by_hand(width, latency) for width in WIDTHS}
    fitting = [width for width, step in steps.items() if step is not None]
    assert set(trained) <= set(fitting) < set(WIDTHS)
    best = max(fitting, key=lambda width: score(auc(width), 1000.0 * width))
    assert found.found.values == {"width": best}
    assert found.sharding.seconds == pytest.approx(steps[best]) == found.found.cost.seconds
    assert found.sharding.seconds <= min(step for step in found.alike.values() if step is not None)


def test_one_strategy_for_all_where_it_fits():
    layers = layers_of(parts({"width": 300})[1], CLUSTER)
    steps = alike(layers, CLUSTER)
    assert len(steps) == 6 and steps["sharded, tables by rows"] is not None
    assert alike(layers, Cluster(gpus=4, memory=10))["replicated, tables replicated"] is None


def test_says_so_if_nothing_fits():
    tight = Cluster(gpus=4, memory=10)
    with pytest.raises(NothingFits, match="none of 4 trials"):
        search_together(parts, lambda *_: 0.7, {"width": WIDTHS}, Bounds(0.0, 1.0), tight, trials=4)


def test_seconds_that_are_no_number_are_an_error_and_not_a_size_that_does_not_fit():
    with pytest.raises(ShardingError, match="a: expected seconds"):
        broken = lambda values: (1.0, [Part("a", math.nan, weights=10)])  # noqa: E731
        search_together(broken, lambda *_: 0.7, {"width": WIDTHS}, Bounds(0.0, 1.0), CLUSTER, trials=1)
