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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples.audience import data
from examples.audience.baselines import Asked, by_hand, duckdb_sample, theta_sketches, uniform
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns, encoded
from examples.audience.reach.counters import Local
from examples.audience.reach.design import counted, drawn_trial
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In
from examples.audience.reach.schema import Schema

BANDS = ((1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 0.1), (0.1, 0.5))
"""Shares of the population that queries match."""
ATTEMPTS = 100
"""Times as many queries are drawn, at most, to fill the bands."""
QUERIES_SEED = 20_261_129
"""Far from the seed of the trials that the model learns its errors from."""


@dataclass(frozen=True, eq=False)
class Population:
    """paths, columns: what `build` is given. picked: two features that a person would stratify by, the first alone."""

    name: str
    paths: list[Path]
    columns: Columns
    picked: tuple[str, ...]


def populations(folder: Path, rows: int, flights: Path | None = None) -> dict[str, Callable[[], Population]]:
    def drawn(name: str, picked: tuple[str, ...]) -> Callable[[], Population]:
        def made() -> Population:
            network = data.network(name)
            return Population(name, network.write(folder / name, rows), Columns(tuple(network.values)), picked)

        return made

    def adult() -> Population:
        features = (*data.ADULT.features, "age")
        return Population("adult", [data.adult(folder)], Columns(features), ("gender", "education"))

    def flown() -> Population:
        return Population("flights", [data.flights(folder, flights)], data.FLIGHTS, ("origin", "month"))

    return {
        "adult": adult,
        "flights": flown,
        "insurance": drawn("insurance", ("Age", "SocioEcon")),
        "alarm": drawn("alarm", ("HYPOVOLEMIA", "LVFAILURE")),
        "hailfinder": drawn("hailfinder", ("Scenario", "Date")),
    }


def queries(codes: dict[str, np.ndarray], schema: Schema, count: int, seed: int) -> list[Asked]:
    """Queries and the rows that each matches, as many in every band."""
    rng, found, rows = np.random.default_rng(seed), [], len(next(iter(codes.values())))
    wanted = {band: count // len(BANDS) for band in BANDS}
    for _ in range(ATTEMPTS):
        trials = [trial for trial in (drawn_trial(codes, schema, rng) for _ in range(count)) if trial]
        for trial, matching in zip(trials, counted(trials, codes).tolist(), strict=True):
            band = next((each for each in BANDS if each[0] <= matching / rows < each[1]), None)
            if band and wanted[band]:
                wanted[band] -= 1
                values = {name: schema.feature(name).values for name, _ in trial}
                parts = (In(name, tuple(values[name][code] for code in own)) for name, own in trial)
                there = np.all([np.isin(codes[name], own) for name, own in trial], axis=0)
                found.append(Asked(And(tuple(parts)), there))
        if not any(wanted.values()):
            break
    return found


def measured(population: Population, n: int, samples: int, count: int, folder: Path) -> dict[str, Any]:
    """Root mean square of the relative errors by method and band, and the coverage of our intervals."""
    build(population.paths, population.columns, folder / "first", 100)
    schema = Estimator(Local(folder / "first")).schema
    whole = pa.concat_tables([pq.read_table(path, columns=population.columns.all) for path in population.paths])
    codes = encoded(whole, schema)
    rows = len(whole)
    n = min(n, rows // 4)
    asked = queries(codes, schema, count, QUERIES_SEED)
    truth = np.array([each.there.sum() for each in asked], float)
    band = np.array([next(i for i, (low, high) in enumerate(BANDS) if low <= t / rows < high) for t in truth])
    one, two = (
        np.unique(np.stack([codes[name] for name in population.picked[:k]]), axis=1, return_inverse=True)[1].ravel()
        for k in (1, 2)
    )
    errors: dict[str, list[np.ndarray]] = {}
    inside, exact, size = [], [], {"sample": 0, "model": 0}
    cover: tuple[str, ...] = ()
    for seed in range(samples):
        rng = np.random.default_rng(seed)
        manifest = build(population.paths, population.columns, folder / "sample", n, seed=seed)
        cover, size = manifest.cover, sizes(folder / "sample")
        estimator = Estimator(Local(folder / "sample"))
        found = [estimator.reach(Question(each.query)) for each in asked]
        inside.append([each.low - 1e-6 <= t <= each.high + 1e-6 for each, t in zip(found, truth, strict=True)])
        exact = [each.low == each.high for each in found]
        answers = {
            "loka": np.array([each.value for each in found]),
            "its sample alone": np.array([estimator.alone(Question(each.query)).value for each in asked]),
            "uniform": uniform(asked, rows, n, rng),
            "duckdb": duckdb_sample(asked, rows, n, seed),
            "one stratum by hand": by_hand(asked, one, n, rng),
            "two": by_hand(asked, two, n, rng),
            "theta": theta_sketches(asked, codes, schema, n, seed),
        }
        for method, values in answers.items():
            errors.setdefault(method, []).append(values / truth - 1)
    covered = np.mean(inside, axis=0)
    known = {"population": population.name, "rows": rows, "sample": n, "samples": samples, "cover": cover}
    result: dict[str, Any] = {**known, "bytes": size, "bands": {}}
    spread = {name: np.sqrt(np.mean(np.square(each), axis=0)) for name, each in errors.items()}
    groups = [("all", band >= 0), ("under 1 %", band < 2), *((_label(b), band == i) for i, b in enumerate(BANDS))]
    for label, own in groups:
        if own.any():
            result["bands"][label] = {
                "queries": int(own.sum()),
                "rms": {name: float(np.sqrt(np.mean(each[own] ** 2))) for name, each in spread.items()},
                "exact": float(np.mean(np.array(exact)[own])),
                "covered": float(covered[own].mean()),
                "covered where not exact": float(covered[own & ~np.array(exact)].mean())
                if (own & ~np.array(exact)).any()
                else None,
            }
    return result


def sizes(folder: Path) -> dict[str, int]:
    """Bytes on disk of the sampled rows, and of what is known of the whole population."""
    shards = sum(path.stat().st_size for path in folder.glob("shard-*.parquet"))
    return {"sample": shards, "model": (folder / "model.npz").stat().st_size}


def _label(band: tuple[float, float]) -> str:
    return f"{100 * band[0]:g} % to {100 * band[1]:g} %"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", nargs="+", default=["adult", "insurance", "alarm", "hailfinder"])
    parser.add_argument("--flights", type=Path, help="flights-3m.parquet of vega-datasets, for the population flights")
    parser.add_argument("--population-rows", type=int, default=1_000_000, help="of the populations that are drawn")
    parser.add_argument("--rows", type=int, default=30_000, help="of a sample; a quarter of the population at most")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a plot of the errors by band")
    options = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        makers = populations(Path(folder), options.population_rows, options.flights)
        for name in options.populations:
            if name not in makers:
                parser.error(f"there is no population {name!r}; there are {', '.join(makers)}")
            found = measured(makers[name](), options.rows, options.samples, options.queries, Path(folder))
            results.append(found)
            Console(width=140).print(table(found))
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        picture(results, options.picture)
    return results


def table(found: dict[str, Any]) -> Table:
    title = f"{found['population']}: {found['sample']:,} of {found['rows']:,} rows, {found['samples']} samples"
    methods = list(found["bands"]["all"]["rms"])
    ends = ["loka / uniform", "exact", "covered", "not exact"]
    out = Table("queries that match", "how many", *methods, *ends, title=title)
    for name, own in found["bands"].items():
        cells = [f"{own['rms'][each]:.1%}" for each in methods]
        less = own["covered where not exact"]
        ends = [f"{own['rms']['loka'] / own['rms']['uniform']:.2f}", f"{own['exact']:.0%}", f"{own['covered']:.1%}"]
        out.add_row(name, str(own["queries"]), *cells, *ends, "-" if less is None else f"{less:.1%}")
    return out


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Errors by band of selectivity, a panel a population."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.6), squeeze=False, sharey=True)
    for axis, found in zip(axes[0], results, strict=True):
        bands = [name for name in found["bands"] if " to " in name]
        for method in found["bands"]["all"]["rms"]:
            values = [max(found["bands"][band]["rms"][method], 1e-5) for band in bands]
            axis.plot(range(len(bands)), values, marker="o", label=method, lw=2.5 if method == "loka" else 1)
        axis.set(yscale="log", xticks=range(len(bands)), title=found["population"], xlabel="share that matches")
        axis.set_xticklabels([band.replace(" to ", "\nto ") for band in bands], fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("relative error, RMS")
    axes[0, -1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
