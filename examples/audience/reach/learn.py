"""What a first pass over a population teaches: values, buckets, and which features depend on each other.

The dependency graph and its vertex cover are those of `loka_compile.sampling.strata`, on a pilot of rows with the
smallest keys; the strata are the combinations of the cover's values (arXiv 1305.3014, US9524510B2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx
import numpy as np
import pyarrow as pa

from examples.audience.reach.columns import PILOT_ROWS, Columns, Seen, encoded, floats, levels
from examples.audience.reach.design import Design, drawn_trials
from examples.audience.reach.margins import margins
from examples.audience.reach.schema import Feature, Number, Schema
from loka_compile.sampling.strata import by_importance, dependency_graph, vertex_cover

BUCKETS = 16
"""Of a number, equally full in the pilot."""
MAX_CELLS = 8192
"""Of the table of a feature given those it depends on."""
TRIALS = 1500
"""Conjunctions on which the model is tried; fewer where there are not TRIAL_ROWS rows for each."""
TRIAL_ROWS = 32


def learn(files: Sequence[Seen], columns: Columns) -> Design:
    """The schema of the population, the cover that makes its strata, and what each other feature depends on."""
    order = np.argsort(np.concatenate([each.pilot_keys for each in files]))[:PILOT_ROWS]
    pilot = pa.concat_tables([each.pilot for each in files], promote_options="permissive").take(order)
    features = []
    for name in columns.features:
        found = {value for each in files for value in each.values[name]}
        features.append(Feature(name, tuple(sorted(found, key=lambda value: (value is None, str(type(value)), value)))))
    numbers = tuple(Number(name, _edges(pilot[name])) for name in columns.numbers)
    schema = Schema(tuple(features), numbers, columns.measures, columns.user)
    if columns.user is not None:  # users are drawn, and rows of one user may differ in everything
        return Design(schema, ())
    codes = encoded(pilot, schema)
    table = {name: each.astype(np.int64) for name, each in codes.items()}
    graph = dependency_graph(
        {n: np.unique(c, return_inverse=True)[1] for n, c in table.items()}, np.random.default_rng(0)
    )
    for name in schema.names:
        graph.nodes[name]["weight"] = np.log(max(2, levels(schema, name)))
    cover = by_importance(graph, vertex_cover(graph))
    given = {name: _given(name, graph, schema) for name in schema.names if name not in cover}
    design = Design(schema, cover, given, margins(schema, graph))
    wanted = min(TRIALS, sum(each.rows for each in files) // TRIAL_ROWS)
    return replace(design, trials=drawn_trials(codes, design, wanted)) if schema.features else design


def _given(name: str, graph: nx.Graph, schema: Schema) -> tuple[str, ...]:
    """The features of the cover that `name` depends on, the closest first, while their combinations are few."""
    found: list[str] = []
    size = levels(schema, name) + 1
    closest = sorted(graph[name].items(), key=lambda item: -item[1]["information"])
    for other, _ in closest:
        size *= levels(schema, other) + 1
        if size > MAX_CELLS:
            break
        found.append(other)
    return tuple(found)


def _edges(column: pa.ChunkedArray) -> tuple[float, ...]:
    values = floats(column)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ()
    return tuple(np.unique(np.quantile(values, np.linspace(0, 1, BUCKETS + 1)[1:-1])).tolist())
