"""How wrong reach is for random criteria, at equal sample size: this sample, uniform, hand-picked strata, sketches.

    python -m examples.audience.bench_accuracy [--populations adult insurance ...] [--rows 30000] [--json FILE]

1,000 queries of one to five criteria, each a set of values around those of a person drawn at random, by how many they
match (0.01 % to 50 %). Errors are relative to the truth; root mean squares over queries and over samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasketches
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples.audience import data
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns, encoded
from examples.audience.reach.counters import Local
from examples.audience.reach.design import drawn_trial
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In, Query
from examples.audience.reach.schema import Schema
from loka_compile.sampling.allocation import largest_remainder

BANDS = ((1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 0.1), (0.1, 0.5))
"""Shares of the population that queries match."""


@dataclass(frozen=True, eq=False)
class Population:
    """paths, columns: what `build` is given. codes [N] by feature; picked: the one or two features a person would
    stratify by."""

    name: str
    paths: list[Path]
    columns: Columns
    picked: tuple[str, ...]
    schema: Schema | None = None


def populations(folder: Path, rows: int) -> dict[str, Callable[[], Population]]:
    def drawn(name: str, picked: tuple[str, ...]) -> Callable[[], Population]:
        def made() -> Population:
            network = data.network(name)
            return Population(name, network.write(folder / name, rows), Columns(tuple(network.values)), picked)

        return made

    def adult() -> Population:
        features = (*data.ADULT.features, "age")
        return Population("adult", [data.adult(folder)], Columns(features), ("gender", "education"))

    return {
        "adult": adult,
        "insurance": drawn("insurance", ("Age", "SocioEcon")),
        "alarm": drawn("alarm", ("HYPOVOLEMIA", "LVFAILURE")),
        "hailfinder": drawn("hailfinder", ("Scenario", "Date")),
    }


def queries(codes: dict[str, np.ndarray], schema: Schema, count: int, seed: int) -> list[tuple[Query, np.ndarray]]:
    """Queries and the rows [N] bool each matches, spread over the bands."""
    rng, found, rows = np.random.default_rng(seed), [], len(next(iter(codes.values())))
    wanted = {band: count // len(BANDS) for band in BANDS}
    for _ in range(200 * count):
        if not any(wanted.values()):
            break
        trial = drawn_trial(codes, schema, rng)
        there = np.all([np.isin(codes[name], own) for name, own in trial], axis=0) if trial else np.ones(rows, bool)
        band = next((each for each in BANDS if each[0] <= there.mean() < each[1]), None)
        if trial and band and wanted[band]:
            wanted[band] -= 1
            values = {name: schema.feature(name).values for name, _ in trial}
            parts = (In(name, tuple(values[name][code] for code in own)) for name, own in trial)
            found.append((And(tuple(parts)), there))
    return found


def uniform(there: Sequence[np.ndarray], rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    picked = rng.choice(rows, n, replace=False)
    return np.array([each[picked].mean() * rows for each in there])


def by_hand(there: Sequence[np.ndarray], strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Strata of the features a person picks, in proportion, at least a row each."""
    order = np.lexsort((rng.random(len(strata)), strata))
    sizes = np.bincount(strata)
    draws = np.minimum(largest_remainder(sizes * (n / len(strata)), np.ones(len(sizes), np.int64), n), sizes)
    starts = np.cumsum(sizes) - sizes
    picked = np.concatenate([order[start : start + k] for start, k in zip(starts, draws, strict=True)])
    weights = np.repeat(sizes / draws, draws)
    return np.array([weights[each[picked]].sum() for each in there])


def sketches(asked: Sequence[Query], codes: dict[str, np.ndarray], schema: Schema, n: int, seed: int) -> np.ndarray:
    """A theta sketch a feature's value, n entries in all; unions within a criterion, intersections between them."""
    values = sum(len(each.values) for each in schema.features)
    lg = max(5, int(np.log2(n / values)))
    held = {}
    for feature in schema.features:
        for code in range(len(feature.values)):
            held[feature.name, code] = sketch = datasketches.update_theta_sketch(lg, seed=seed)
            for row in np.flatnonzero(codes[feature.name] == code)[: 40 * 2**lg].tolist():
                sketch.update(row)
    found = []
    for query in asked:
        whole = None
        for part in query.all:
            union = datasketches.theta_union(lg, seed=seed)
            for value in part.values:
                union.update(held[part.feature, schema.feature(part.feature).code(value)])
            if whole is None:
                whole = datasketches.theta_intersection(seed)
            whole.update(union.get_result())
        found.append(whole.get_result().get_estimate())
    return np.array(found)


def measured(population: Population, n: int, samples: int, count: int, folder: Path) -> dict[str, Any]:
    """Root mean square of the relative errors by method and band, and the coverage of our intervals."""
    build(population.paths, population.columns, folder / "first", min(n, 1000))
    schema = Estimator(Local(folder / "first")).schema
    codes = encoded(
        pa.concat_tables([pq.read_table(p, columns=population.columns.all) for p in population.paths]), schema
    )
    rows = len(next(iter(codes.values())))
    n = min(n, rows // 4)
    asked = queries(codes, schema, count, 0)
    there, truth = [rows_ for _, rows_ in asked], np.array([rows_.sum() for _, rows_ in asked], float)
    band = np.array([next(i for i, (low, high) in enumerate(BANDS) if low <= t / rows < high) for t in truth])
    strata = np.unique(np.stack([codes[name] for name in population.picked]), axis=1, return_inverse=True)[1].ravel()
    errors: dict[str, list[np.ndarray]] = {"loka": [], "uniform": [], "strata by hand": []}
    inside = []
    cover: tuple[str, ...] = ()
    for seed in range(samples):
        rng = np.random.default_rng(seed)
        manifest = build(population.paths, population.columns, folder / "sample", n, seed=seed)
        cover = manifest.cover
        estimator = Estimator(Local(folder / "sample"))
        found = [estimator.reach(Question(query)) for query, _ in asked]
        inside.append([each.low - 1e-6 <= t <= each.high + 1e-6 for each, t in zip(found, truth, strict=True)])
        errors["loka"].append(np.array([each.value for each in found]) / truth - 1)
        errors["uniform"].append(uniform(there, rows, n, rng) / truth - 1)
        errors["strata by hand"].append(by_hand(there, strata, n, rng) / truth - 1)
    covered = np.mean(inside, axis=0)
    result: dict[str, Any] = {"population": population.name, "rows": rows, "sample": n, "cover": cover, "bands": {}}
    spread = {name: np.sqrt(np.mean(np.square(each), axis=0)) for name, each in errors.items()}
    for label, own in [
        ("all", band >= 0),
        ("under 1 %", band < 2),
        *((_label(b), band == i) for i, b in enumerate(BANDS)),
    ]:
        if own.any():
            rms = {name: float(np.sqrt(np.mean(each[own] ** 2))) for name, each in spread.items()}
            ratio = float(np.exp(np.mean(np.log(spread["loka"][own] / spread["uniform"][own] + 1e-12))))
            result["bands"][label] = {
                "queries": int(own.sum()),
                **rms,
                "median ratio": ratio,
                "covered": float(covered[own].mean()),
            }
    return result


def _label(band: tuple[float, float]) -> str:
    return f"{band[0]:.2%} to {band[1]:.0%}" if band[0] < 0.001 else f"{band[0]:.1%} to {band[1]:.0%}"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", nargs="+", default=["adult", "insurance", "alarm", "hailfinder"])
    parser.add_argument("--population-rows", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=30_000, help="of a sample; a quarter of the population at most")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        makers = populations(Path(folder), options.population_rows)
        for name in options.populations:
            found = measured(makers[name](), options.rows, options.samples, options.queries, Path(folder))
            results.append(found)
            Console(width=140).print(table(found))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def table(found: dict[str, Any]) -> Table:
    title = (
        f"{found['population']}: {found['sample']:,} of {found['rows']:,} rows; strata by {', '.join(found['cover'])}"
    )
    out = Table(
        "queries that match", "how many", "loka", "uniform", "by hand", "loka / uniform", "covered", title=title
    )
    for name, own in found["bands"].items():
        cells = [f"{own[each]:.1%}" for each in ("loka", "uniform", "strata by hand")]
        ratio = f"{own['loka'] / own['uniform']:.2f} ({own['median ratio']:.2f})"
        out.add_row(name, str(own["queries"]), *cells, ratio, f"{own['covered']:.1%}")
    return out


if __name__ == "__main__":
    main(sys.argv[1:])
