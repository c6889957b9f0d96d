"""The dynamic programme is as good as trying everything."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.lattice.sketch.sharding import Layer, ShardingError, shard

NAMES = ("replicated", "sharded", "split")
NUMBER = st.integers(0, 9)


@st.composite
def problems(draw):
    count = draw(st.integers(1, 5))
    layers = []
    for index in range(count):
        own = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
        seconds, memory = ({name: draw(NUMBER) for name in own} for _ in range(2))
        layers.append(Layer(f"layer {index}", seconds, memory))
    changes = {key: draw(NUMBER) for key in product(range(1, count), NAMES, NAMES)}
    return layers, changes, draw(st.integers(0, 30))


def brute(layers, changes, budget):
    """(seconds, memory, strategies) of all ways that fit, best first."""
    found = []
    for way in product(*(layer.seconds for layer in layers)):
        seconds = sum(layer.seconds[s] for layer, s in zip(layers, way, strict=True))
        seconds += sum(changes[i, way[i - 1], way[i]] for i in range(1, len(way)))
        memory = sum(layer.memory[s] for layer, s in zip(layers, way, strict=True))
        if memory <= budget:
            found.append((seconds, memory, way))
    return sorted(found)


@given(problems())
def test_it_is_as_good_as_trying_everything(problem):
    layers, changes, budget = problem
    ways = brute(*problem)
    if not ways:
        with pytest.raises(ShardingError, match="no strategies fit"):
            shard(layers, lambda *key: changes[key], budget)
        return
    found = shard(layers, lambda *key: changes[key], budget)
    assert (found.seconds, found.memory) == ways[0][:2]
    assert (found.seconds, found.memory, found.strategies) in ways  # and it is a way that there is


def test_many_layers_are_no_matter():
    layers = [Layer(str(i), {"a": 1.0, "b": 2.0}, {"a": 10, "b": 5}) for i in range(60)]
    found = shard(layers, lambda i, before, after: 0.1 * (before != after), 500)
    assert found.memory <= 500 and found.strategies.count("b") == 20
    assert found.seconds == pytest.approx(40 + 40 + 0.1)  # one change of strategy, not forty
    with pytest.raises(ShardingError, match="no strategies fit 299 bytes: up to 59 the smallest take 300 bytes"):
        shard(layers, lambda *key: 0.0, 299)


def test_what_cannot_be_is_refused():
    with pytest.raises(ShardingError, match=r"x: expected seconds and memory .* got \['a'\] and \['b'\]"):
        Layer("x", {"a": 1.0}, {"b": 1})
    with pytest.raises(ShardingError, match="not negative"):
        Layer("x", {"a": 1.0}, {"a": -1})
    with pytest.raises(ShardingError, match="no layer"):
        shard([], lambda *key: 0.0, 1)


@pytest.mark.parametrize("wrong", [math.nan, -1.0, -math.inf])
@pytest.mark.parametrize("strategies", ["ab", "ba"])  # min() of a nan depends on the order
def test_what_is_no_number_of_seconds_or_bytes_never_wins(wrong, strategies):
    numbers, ones = dict(zip(strategies, (wrong, 1.0), strict=True)), dict.fromkeys(strategies, 1)
    with pytest.raises(ShardingError, match=rf"x: expected seconds .* got {{'{strategies[0]}': {wrong}}}"):
        Layer("x", numbers, ones)
    with pytest.raises(ShardingError, match=rf"x: expected memory .* got {{'{strategies[0]}': {wrong}}}"):
        Layer("x", ones, numbers)
    layers = [Layer("x", {"a": 1.0}, {"a": 1}), Layer("y", {"b": 1.0}, {"b": 1})]
    with pytest.raises(ValueError, match=f"y: expected seconds of a change from a to b .* got {wrong}"):
        shard(layers, lambda *key: wrong, 10)


def test_what_takes_infinitely_long_is_no_way():
    never = math.inf
    assert shard([Layer("x", {"a": never, "b": 2.0}, {"a": 0, "b": 1})], lambda *key: 0.0, 10).strategies == ("b",)
    for layer in (Layer("x", {"a": never}, {"a": 1}), Layer("x", {"a": never, "b": never}, {"a": 1, "b": 1})):
        with pytest.raises(ShardingError, match="up to x every way within 10 bytes takes infinitely long"):
            shard([layer], lambda *key: 0.0, 10)
    apart = [Layer("x", {"a": 1.0}, {"a": 1}), Layer("y", {"b": 1.0}, {"b": 1})]
    with pytest.raises(ShardingError, match="up to y every way within 10 bytes takes infinitely long"):
        shard(apart, lambda *key: never, 10)
    small = [Layer("x", {"a": never, "b": 1.0}, {"a": 1, "b": 10}), Layer("y", {"b": 1.0}, {"b": 5})]
    with pytest.raises(ShardingError, match="no strategies fit 12 bytes: up to y the smallest take 15 bytes"):
        shard(small, lambda *key: 0.0, 12)


def test_a_budget_that_is_no_number_is_refused_and_not_taken_for_one_that_is_too_small():
    layers = [Layer("x", {"a": 1.0}, {"a": 1})]
    with pytest.raises(ValueError, match="expected bytes as a budget, got nan") as error:
        shard(layers, lambda *key: 0.0, math.nan)
    assert not isinstance(error.value, ShardingError)
    assert shard(layers, lambda *key: 0.0, math.inf).memory == 1
