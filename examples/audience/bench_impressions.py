"""Impressions over time: MovieLens, whose users are sampled with all their rows. Unique users, rows, and coming days.

    python -m examples.audience.bench_impressions [--samples 10] [--queries 300] [--json FILE]

Questions are of one to three criteria around a rating drawn at random. A forecast sees all days but the last ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.audience import data
from examples.audience.reach.build import build
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.forecast import forecast
from examples.audience.reach.query import And, Everybody, In, Query

BANDS = ((0.01, 0.05), (0.05, 0.2), (0.2, 1.0))
"""Shares of all users that questions match."""
AHEAD = 7
"""Days that are forecast."""


def questions(whole: pa.Table, count: int) -> list[tuple[Query, np.ndarray]]:
    """Conjunctions, and the rows that match."""
    rng, found = np.random.default_rng(3), []
    names = [name for name in data.MOVIELENS.features if name != "day"]
    columns = {name: whole[name].to_numpy() for name in names}
    while len(found) < count:
        row, asked = int(rng.integers(len(whole))), rng.choice(names, rng.integers(1, 4), replace=False).tolist()
        there = np.all([columns[name] == columns[name][row] for name in asked], axis=0)
        found.append((And(tuple(In(name, (whole[name][row].as_py(),)) for name in asked)), there))
    return found


def reached(path: Path, folder: Path, samples: int, count: int, share: float) -> dict[str, Any]:
    """Relative errors and how often intervals hold, of users and of rows, by the share of users that match."""
    whole = pq.read_table(path)
    users, asked = whole["user"].to_numpy(), questions(whole, count)
    truth = {"users": [len(np.unique(users[there])) for _, there in asked], "count": [t.sum() for _, t in asked]}
    part = np.array(truth["users"]) / len(np.unique(users))
    errors: dict[str, list[list[float]]] = {"users": [], "count": []}
    inside: dict[str, list[list[bool]]] = {"users": [], "count": []}
    for seed in range(samples):
        build([path], data.MOVIELENS, folder / "s", round(share * len(whole)), seed=seed)
        estimator = Estimator(Local(folder / "s"))
        for of in ("users", "count"):
            found = estimator.batch([Question(query, of) for query, _ in asked])
            pairs = list(zip(found, truth[of], strict=True))
            errors[of].append([each.value / t - 1 for each, t in pairs])
            inside[of].append([each.low - 1e-6 <= t <= each.high + 1e-6 for each, t in pairs])
    result: dict[str, Any] = {"users": len(np.unique(users)), "rows": len(whole), "share": share, "bands": {}}
    for low, high in BANDS:
        own = (part >= low) & (part < high)
        result["bands"][f"{low:.0%} to {high:.0%}"] = {"questions": int(own.sum())} | {
            of: {
                "rms": float(np.sqrt(np.mean(np.square(errors[of])[:, own]))),
                "covered": float(np.mean(np.array(inside[of])[:, own])),
            }
            for of in ("users", "count")
        }
    return result


def coming(path: Path, folder: Path, samples: int, share: float) -> dict[str, Any]:
    """Of the days after several points in time: median error of a day, and how often its interval holds."""
    whole, errors, inside = pq.read_table(path), [], []
    days = np.array(whole["day"].to_pylist())
    last = date.fromisoformat(max(days))
    for step in range(samples):
        end = last - timedelta(days=AHEAD * (step + 1))
        before = whole.filter(pa.array(days <= str(end)))
        pq.write_table(before, folder / "before.parquet")
        build([folder / "before.parquet"], data.MOVIELENS, folder / "f", round(share * len(before)), seed=step)
        found = forecast(Estimator(Local(folder / "f")), Question(Everybody()), "day", AHEAD)
        for day, reach in found.coming.items():
            truth = pc.sum(pc.equal(whole["day"], str(day))).as_py()
            errors.append(abs(reach.value / truth - 1))
            inside.append(reach.low <= truth <= reach.high)
    return {"days": len(errors), "median error": float(np.median(errors)), "covered": float(np.mean(inside))}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.25, help="of the users that are sampled")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = data.movielens(folder)
        found = reached(path, folder, options.samples, options.queries, options.share)
        found["coming days"] = coming(path, folder, min(options.samples, 8), options.share)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
