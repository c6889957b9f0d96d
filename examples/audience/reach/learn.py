"""What a first pass over a population teaches: values, buckets, and which features depend on each other.

The dependency graph and its vertex cover are those of `loka_compile.sampling.strata`, on a pilot of rows with the
smallest keys; the strata are the combinations of the cover's values (arXiv 1305.3014, US9524510B2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from examples.audience.reach.columns import PILOT_ROWS, Columns, Seen, encoded, floats, levels
from examples.audience.reach.schema import Feature, Number, Schema
from loka_compile.sampling.strata import by_importance, dependency_graph, vertex_cover

BUCKETS = 16
"""Of a number, equally full in the pilot."""


def learn(files: Sequence[Seen], columns: Columns) -> tuple[Schema, tuple[str, ...]]:
    """The schema of the population, and the cover: the features that make the strata, the most important first."""
    order = np.argsort(np.concatenate([each.pilot_keys for each in files]))[:PILOT_ROWS]
    pilot = pa.concat_tables([each.pilot for each in files], promote_options="permissive").take(order)
    features = []
    for name in columns.features:
        found = {value for each in files for value in each.values[name]}
        features.append(Feature(name, tuple(sorted(found, key=lambda value: (value is None, str(type(value)), value)))))
    numbers = tuple(Number(name, _edges(pilot[name])) for name in columns.numbers)
    schema = Schema(tuple(features), numbers, columns.measures, columns.user)
    if columns.user is not None:  # users are drawn, and rows of one user may differ in everything
        return schema, ()
    table = {name: codes.astype(np.int64) for name, codes in encoded(pilot, schema).items()}
    graph = dependency_graph(
        {n: np.unique(c, return_inverse=True)[1] for n, c in table.items()}, np.random.default_rng(0)
    )
    for name in schema.names:
        graph.nodes[name]["weight"] = np.log(max(2, levels(schema, name)))
    return schema, by_importance(graph, vertex_cover(graph))


def _edges(column: pa.ChunkedArray) -> tuple[float, ...]:
    values = floats(column)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ()
    return tuple(np.unique(np.quantile(values, np.linspace(0, 1, BUCKETS + 1)[1:-1])).tolist())
