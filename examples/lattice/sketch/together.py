"""Hyper-parameters and sharding in one loop: a proposed model's latency is that of its best sharding.

The paper alternates between the two searches. The sharding of a given model is exact and cheap here, so it is solved
within each trial [I]: a size is judged by the step it can reach on the cluster, and one that fits in no way is pruned
before it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.lattice.sketch.layers import Cluster, Part, change_of, layers_of
from examples.lattice.sketch.search import Bounds, Cost, Found, Report, Space, Values, search
from examples.lattice.sketch.sharding import Layer, Sharding, ShardingError, shard


@dataclass(frozen=True)
class Together:
    """The best trial, how its layers are sharded, and what a step would take if all were sharded alike."""

    found: Found
    layers: tuple[str, ...]
    sharding: Sharding
    alike: dict[str, float | None]


def search_together(
    parts: Callable[[Values], tuple[float, list[Part]]],
    quality: Callable[[Values, Report], float],
    space: Space,
    bounds: Bounds,
    cluster: Cluster,
    *,
    trials: int,
    storage: Path | None = None,
    said: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Together:
    """parts: FLOPs of a row and the layers of the model with these values. The rest is search's; what is `said` is so
    beside the cluster."""

    def cost(values: Values) -> Cost:
        flops, its = parts(values)
        layers = layers_of(its, cluster)  # an error here is an error, not a size that does not fit
        try:
            return Cost(flops, shard(layers, change_of(cluster), cluster.memory).seconds)
        except ShardingError:
            return Cost(flops, float("inf"))

    whole = {**(said or {}), "cluster": asdict(cluster)}
    found = search(cost, quality, space, bounds, trials=trials, storage=storage, said=whole, seed=seed)
    layers = layers_of(parts(found.values)[1], cluster)
    best = shard(layers, change_of(cluster), cluster.memory)
    return Together(found, tuple(layer.name for layer in layers), best, alike(layers, cluster))


def alike(layers: list[Layer], cluster: Cluster) -> dict[str, float | None]:
    """Seconds of a step with one strategy for all weights and one for all tables; None where it does not fit."""
    steps: dict[str, float | None] = {}
    for weights in ("replicated", "state sharded", "sharded"):
        for tables in ("replicated", "by rows"):
            picked = [_only(layer, (weights, tables)) for layer in layers]
            try:
                step = shard(picked, change_of(cluster), cluster.memory).seconds
            except ShardingError:
                step = None
            steps[f"{weights}, tables {tables}"] = step
    return steps


def _only(layer: Layer, wanted: tuple[str, str]) -> Layer:
    """The layer with one of its strategies: the wanted one for its kind, or the only one it has."""
    weights, tables = wanted
    name = tables if "by rows" in layer.seconds else weights if weights in layer.seconds else "replicated"
    return Layer(layer.name, {name: layer.seconds[name]}, {name: layer.memory[name]})
