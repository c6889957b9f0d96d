"""How well Q is recovered, sources are ranked, and in-target reach is corrected, where the truth is known.

    python -m examples.audience.bench_quality [--seeds 8] [--samples 8] [--rehearse] [--json FILE] [--picture FILE]

Campaigns, tags and reports are drawn user by user: from P(truth | tag), the same in all campaigns; from P(tag | truth),
the same in all of them; and, once, from two Q, where neither is. The in-target part uses the census (data.py), whose
true gender a simulated source guesses right for 75 % of those whom it tags.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples.audience import data
from examples.audience.join import Corrected, Source
from examples.audience.quality import methods
from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.drawn import Setting, drawn, made
from examples.audience.quality.errors import error_regression
from examples.audience.quality.fitted import fitted
from examples.audience.quality.ranking import ranking
from examples.audience.quality.result import Quality
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.query import And, In
from loka_compile.sampling.intervals import Bootstrap

RIGHT = (0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
"""How often each of six sources' tags are right."""
NAMES = ("Male", "Female")


VARIED = {
    "campaigns": (10, 40, 160),
    "users": (500, 5000, 50_000),
    "overlap": (0.05, 0.3, 2.0, 20.0),
    "panel": (100, 1000, 10_000),
}


def judged(campaigns: Campaigns, q: np.ndarray, rng: np.random.Generator, bootstrap: Bootstrap) -> dict[str, Quality]:
    tags = rng.choice(len(q), 1000, p=campaigns.sizes @ campaigns.mixes / campaigns.sizes.sum())
    truth = np.array([rng.choice(q.shape[1], p=q[tag]) for tag in tags])
    return {
        "default": fitted(campaigns, bootstrap),
        "regression, tags hold": methods.constrained_regression(campaigns, bootstrap),
        "regression, errors hold": error_regression(campaigns, bootstrap),
        "EM": methods.expectation_maximisation(campaigns, bootstrap),
        "single tag": methods.single_tag(campaigns, bootstrap),
        "marginal agreement": methods.marginal_agreement(campaigns, bootstrap),
        "holdout of 1,000": methods.holdout(tags, truth, q.shape[1], bootstrap),
    }


def recovery(setting: Setting, seeds: int, bootstrap: Bootstrap) -> tuple[dict[str, dict[str, float | None]], Counter]:
    """By method: error of a row of Q (total variation), of the accuracy, and how often intervals of Q hold it. And what
    the default takes to be the same in all campaigns, how often."""
    errors: dict[str, list[tuple[float, float, float]]] = {}
    picks: Counter = Counter()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        campaigns, truth = made(setting, rng)
        shares = campaigns.sizes @ campaigns.mixes / campaigns.sizes.sum()
        right = float((shares[1:] * np.diag(truth[1:])).sum() / shares[1:].sum())
        for name, found in judged(campaigns, truth, rng, bootstrap).items():
            score = found.scores.get("accuracy") or found.scores["agreement"]
            row, inside = np.nan, np.nan
            if found.q is not None and found.low is not None and found.high is not None:
                row = float(np.abs(found.q - truth).sum(1).mean() / 2)
                inside = float(((found.low <= truth) & (found.high >= truth)).mean())
            errors.setdefault(name, []).append((row, abs(score.value - right), inside))
            if name == "default":
                picks[found.holds if found.sure else "neither"] += 1
    means = {name: np.mean(each, axis=0).tolist() for name, each in errors.items()}
    names = ("row of Q", "accuracy", "covered")
    return {
        n: {k: None if np.isnan(v) else v for k, v in zip(names, own, strict=True)} for n, own in means.items()
    }, picks


def ranked(setting: Setting, seeds: int, bootstrap: Bootstrap) -> dict[str, float]:
    """Six sources on the same campaigns: pairs in the right order, the best found, ranks inside their intervals."""
    pairs, best, inside = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        found = {}
        for right in RIGHT:
            wrong = (1 - right) / 2
            q = np.vstack([[1 / 3] * 3, np.full((3, 3), wrong) + np.eye(3) * (right - wrong)])
            found[f"{right:.0%}"] = fitted(drawn(setting, q, rng), bootstrap)
        places = {place.source: place for place in ranking(found)}
        order = [places[name].rank.value for name in found]
        pairs.append(np.mean([a < b for a, b in combinations(order, 2)]))
        best.append(order[0] == 1)
        inside.append(np.mean([p.rank.low <= i + 1 <= p.rank.high for i, p in enumerate(map(places.get, found)) if p]))
    return {"pairs": float(np.mean(pairs)), "best": float(np.mean(best)), "ranks covered": float(np.mean(inside))}


def in_target(folder: Path, seeds: int, queries: int, rows: int, bootstrap: Bootstrap) -> dict[str, dict[str, float]]:
    """Reach of the women in random audiences of the census: the tags alone, corrected from two kinds of campaigns."""
    people = pq.read_table(data.adult(folder))
    truth = np.array([NAMES.index(value) for value in people["gender"].to_pylist()])
    features = tuple(name for name in data.ADULT.features if name != "gender")
    errors: dict[str, list[tuple[float, bool]]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        tags = np.where(rng.random(len(truth)) < 0.75, truth, 1 - truth)
        tags = np.where(rng.random(len(truth)) < 0.2, -1, tags)
        named = pa.array([None if tag < 0 else NAMES[tag] for tag in tags.tolist()])
        table = people.select(list(features)).append_column("acme", named)
        pq.write_table(table, folder / "tagged.parquet")
        build([folder / "tagged.parquet"], Columns((*features, "acme")), folder / "s", rows, seed=seed)
        estimator = Estimator(Local(folder / "s"))
        kinds = {
            aimed: Corrected(estimator, [Source("acme", _from_campaigns(tags, truth, by, rng, bootstrap))], NAMES)
            for aimed, by in (("tags", tags), ("people", truth))
        }
        for _ in range(queries):
            person = people.slice(int(rng.integers(len(truth))), 1).to_pylist()[0]
            asked = rng.choice(features, rng.integers(1, 4), replace=False).tolist()
            there = np.all([(people[name].to_numpy(zero_copy_only=False) == person[name]) for name in asked], axis=0)
            women = int((there & (truth == 1)).sum())
            if women < 50:
                continue
            query = And(tuple(In(name, (person[name],)) for name in asked))
            for (aimed, corrected), holds in product(kinds.items(), ("fits", "tags")):
                found = corrected.reach(query, "Female", holds)
                inside = found.reach.low <= women <= found.reach.high
                name = f"campaigns aimed at {aimed}, {'default' if holds == 'fits' else 'tags hold'}"
                errors.setdefault(name, []).append((found.reach.value / women - 1, inside))
            inside = found.tagged.low <= women <= found.tagged.high
            errors.setdefault("tags alone", []).append((found.tagged.value / women - 1, inside))
    return {
        name: {
            "error": float(np.sqrt(np.mean([e**2 for e, _ in own]))),
            "median": float(np.median([abs(e) for e, _ in own])),
            "covered": float(np.mean([inside for _, inside in own])),
            "queries": len(own),
        }
        for name, own in errors.items()
    }


def _from_campaigns(
    tags: np.ndarray, truth: np.ndarray, by: np.ndarray, rng: np.random.Generator, bootstrap: Bootstrap
) -> Quality:
    """60 campaigns aimed at values of `by`; the agency reports the true shares of 1,000 users of each."""
    counts, reports, groups = [], [], [np.flatnonzero(by == value) for value in np.unique(by)]
    for _ in range(60):
        sizes = rng.multinomial(3000, rng.dirichlet(np.full(len(groups), 0.5)))
        users = np.concatenate([rng.choice(own, size) for own, size in zip(groups, sizes, strict=True)])
        counts.append(np.bincount(tags[users] + 1, minlength=3))
        reports.append(np.bincount(truth[rng.choice(users, 1000)], minlength=2) / 1000)
    return fitted(Campaigns.of(counts, reports, np.full(60, 1000)), bootstrap)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="of the in-target part")
    parser.add_argument("--queries", type=int, default=60, help="in-target audiences a seed")
    parser.add_argument("--rows", type=int, default=5000, help="of the in-target sample")
    parser.add_argument("--rehearse", action="store_true", help="one seed of everything, small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a plot of the errors by what is varied")
    options = parser.parse_args(argv)
    seeds, base, queries, varied = options.seeds, Setting(), options.queries, VARIED
    samples, bootstrap = options.samples, Bootstrap()
    if options.rehearse:
        seeds, base, queries = 1, Setting(12, 300, panel=100), 3
        samples, bootstrap = 1, Bootstrap(10)
        varied = {name: values[:1] for name, values in VARIED.items()}
    found: dict[str, Any] = {"base": asdict(base), "seeds": seeds, "samples": samples, "recovery": {}, "ranking": {}}
    for holds in ("tags", "errors"):
        found["recovery"][holds] = {}
        for name, values in varied.items():
            own = [replace(base, holds=holds, **{name: value}) for value in values]
            found["recovery"][holds][name] = [_row(each, getattr(each, name), seeds, bootstrap) for each in own]
            Console(width=170).print(_table(f"{holds} hold, by {name}", found["recovery"][holds][name]))
    found["recovery"]["neither"] = {"neither": [_row(replace(base, holds="neither"), "two Q", seeds, bootstrap)]}
    Console(width=170).print(_table("neither holds", found["recovery"]["neither"]["neither"]))
    for campaigns in (base.campaigns // 4, base.campaigns, base.campaigns * 4):
        found["ranking"][campaigns] = ranked(replace(base, campaigns=campaigns), seeds, bootstrap)
    print("six sources:", json.dumps(found["ranking"], indent=1))
    with tempfile.TemporaryDirectory() as folder:
        found["in target"] = in_target(Path(folder), samples, queries, options.rows, bootstrap)
    print("in target:", json.dumps(found["in target"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        picture(found["recovery"], options.picture)
    return found


def _row(setting: Setting, value: Any, seeds: int, bootstrap: Bootstrap) -> dict[str, Any]:
    by_method, picks = recovery(setting, seeds, bootstrap)
    return {"value": value, "methods": by_method, "picks": dict(picks)}


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    title = f"error of a row of Q / of the accuracy / intervals hold; {name}"
    out = Table("", "default takes", *rows[0]["methods"], title=title)
    for row in rows:
        cells = [", ".join(f"{holds} {times}" for holds, times in row["picks"].items())]
        for own in row["methods"].values():
            cells.append(" / ".join("-" if value is None else f"{value:.1%}" for value in own.values()))
        out.add_row(f"{row['value']:,}" if isinstance(row["value"], int) else str(row["value"]), *cells)
    return out


def picture(recovered: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = ("tags", "errors")
    across = len(recovered["tags"])
    figure, axes = plt.subplots(2, across, figsize=(3.6 * across, 6), sharey=True, squeeze=False)
    for holds, line in zip(kinds, axes, strict=True):
        for axis, (name, rows) in zip(line, recovered[holds].items(), strict=True):
            for method, first in rows[0]["methods"].items():
                if first["row of Q"] is not None:
                    errors = [row["methods"][method]["row of Q"] for row in rows]
                    style = {"linewidth": 4, "alpha": 0.4} if method == "default" else {"marker": "o"}
                    axis.plot([row["value"] for row in rows], errors, label=method, **style)
            axis.set(xscale="log", yscale="log", xlabel=name)
            axis.grid(alpha=0.3)
        line[0].set_ylabel(f"{holds} hold: error of a row of Q")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
