"""The bench keeps what it found by all that it depends on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")
from examples.lattice.sketch import bench
from tests.examples.lattice.networks.small import SIZE, network


def test_a_preview_is_of_all_that_it_depends_on():
    model, options = network(), SimpleNamespace(target="h100", batch=64)
    key = bench.key_of(model, {"width": 8, "layers": 1}, options)
    assert key == bench.key_of(model, {"layers": 1, "width": 8}, options)  # as a file of trials gives them back
    others = [
        bench.key_of(model, {"width": 16, "layers": 1}, options),
        bench.key_of(model, {"width": 8, "layers": 1}, SimpleNamespace(target="b200", batch=64)),
        bench.key_of(model, {"width": 8, "layers": 1}, SimpleNamespace(target="h100", batch=32)),
        bench.key_of(network(replace(SIZE, layers=1)), {"width": 8, "layers": 1}, options),
    ]
    assert len({key, *others}) == 5
