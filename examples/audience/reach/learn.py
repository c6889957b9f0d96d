"""What a first pass over a population teaches: values, buckets, and which features depend on each other.

The dependency graph and its vertex cover are those of `loka_compile.sampling.strata`, on a pilot of rows with the
smallest keys; the strata are the combinations of the cover's values (arXiv 1305.3014, US9524510B2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import networkx as nx
import numpy as np

from examples.audience.reach.columns import MAX_VALUES, PILOT_ROWS, Columns, Seen, encoded, enough, levels
from examples.audience.reach.design import Design, Trial, drawn_trials
from examples.audience.reach.kinds import floats
from examples.audience.reach.margins import fitting, margins
from examples.audience.reach.schema import Feature, Number, Schema, Value
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
    features = tuple(Feature(name, _listed(name, _together(name, files))) for name in columns.features)
    values = {name: np.concatenate([floats(each.pilot[name]) for each in files])[order] for name in columns.numbers}
    numbers = tuple(Number(name, _edges(own)) for name, own in values.items())
    schema = Schema(features, numbers, columns.measures, columns.user)
    if columns.user is not None or not schema.names:  # users are drawn, and rows of one user may differ in everything
        return Design(schema, ())
    pilots = [encoded(each.pilot, schema) for each in files]  # a column's type may differ from file to file
    codes = {name: np.concatenate([each[name] for each in pilots])[order] for name in schema.names}
    table = {name: each.astype(np.int64) for name, each in codes.items()}
    graph = dependency_graph(
        {n: np.unique(c, return_inverse=True)[1] for n, c in table.items()}, np.random.default_rng(0)
    )
    for name in schema.names:
        graph.nodes[name]["weight"] = np.log(max(2, levels(schema, name)))
    cover = by_importance(graph, vertex_cover(graph))
    given = {name: _given(name, _closest(name, graph), schema) for name in schema.names if name not in cover}
    design = Design(schema, cover, given, margins(schema, graph))
    wanted = min(TRIALS, sum(each.rows for each in files) // TRIAL_ROWS)
    return replace(design, trials=drawn_trials(codes, design, wanted)) if schema.features else design


def extended(design: Design, files: Sequence[Seen]) -> Design:
    """The design of yesterday's files for today's: their values that it does not list are listed, too.

    Values that are gone stay, with no rows, until a feature has no room for them. Tables that grow out of their bounds
    are counted no more.
    """
    old = design.schema
    today = {feature.name: _together(feature.name, files) for feature in old.features}
    if all(today[feature.name] <= set(feature.values) for feature in old.features):
        return design
    features = []
    for feature in old.features:
        both = today[feature.name] | set(feature.values)
        features.append(
            Feature(feature.name, _listed(feature.name, both if len(both) <= MAX_VALUES else today[feature.name]))
        )
    schema = replace(old, features=tuple(features))
    codes = {feature.name: {value: i for i, value in enumerate(feature.values)} for feature in features}
    moved = {each.name: [codes[each.name].get(value) for value in each.values] for each in old.features}
    return Design(
        schema,
        design.cover,
        {name: _given(name, own, schema) for name, own in design.given.items()},
        fitting(design.margins, schema),
        tuple(filter(None, (_moved(trial, moved) for trial in design.trials))),
    )


def _moved(trial: Trial, moved: dict[str, list[int | None]]) -> Trial:
    """The trial by the codes that its values have now; empty where a criterion has none left."""
    found = [
        (name, tuple(sorted(i for i in (moved[name][code] for code in own) if i is not None))) for name, own in trial
    ]
    return tuple(found) if all(own for _, own in found) else ()


def _together(name: str, files: Sequence[Seen]) -> set[Value]:
    return set().union(*(each.values[name] for each in files))


def _listed(name: str, values: set[Value]) -> tuple[Value, ...]:
    """In their order, None last."""
    enough("", name, values)
    return tuple(sorted(values, key=lambda value: (value is None, str(type(value)), value)))


def _closest(name: str, graph: nx.Graph) -> list[str]:
    return [other for other, _ in sorted(graph[name].items(), key=lambda item: -item[1]["information"])]


def _given(name: str, closest: Iterable[str], schema: Schema) -> tuple[str, ...]:
    """The features of the cover that `name` depends on, the closest first, while their combinations are few."""
    found: list[str] = []
    size = levels(schema, name) + 1
    for other in closest:
        size *= levels(schema, other) + 1
        if size > MAX_CELLS:
            break
        found.append(other)
    return tuple(found)


def _edges(values: np.ndarray) -> tuple[float, ...]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ()
    return tuple(np.unique(np.quantile(values, np.linspace(0, 1, BUCKETS + 1)[1:-1])).tolist())
