"""How well Q is recovered, sources are ranked, and in-target reach is corrected, where the truth is known.

    python -m examples.audience.bench_quality [--seeds 8] [--samples 8] [--rehearse] [--json FILE] [--picture FILE]

Campaigns, tags and reports are drawn user by user from a known Q. The in-target part uses the census (data.py), whose
true gender a simulated source guesses right for 75 % of those whom it tags.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
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
from examples.audience.quality.ranking import ranking
from examples.audience.quality.result import Quality
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.query import And, In
from loka_compile.sampling.intervals import Bootstrap

TRUTH = np.array([[0.45, 0.35, 0.2], [0.8, 0.15, 0.05], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])
"""P(true category | tag): untagged, and three tags that are right for 80, 70 and 70 %."""
RIGHT = (0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
"""How often each of six sources' tags are right."""
NAMES = ("Male", "Female")


@dataclass(frozen=True)
class Setting:
    """campaigns: how many; users: in each; overlap: how alike their mixes of tags are, the Dirichlet's parameter;
    panel: users of a campaign whose truth the agency knows, its noise."""

    campaigns: int = 40
    users: int = 5000
    overlap: float = 0.3
    panel: int = 1000


VARIED = {
    "campaigns": (10, 40, 160),
    "users": (500, 5000, 50_000),
    "overlap": (0.05, 0.3, 2.0, 20.0),
    "panel": (100, 1000, 10_000),
}


def drawn(setting: Setting, q: np.ndarray, rng: np.random.Generator) -> Campaigns:
    counts, reports = [], []
    for _ in range(setting.campaigns):
        mix = rng.dirichlet(np.full(len(q), setting.overlap))
        counts.append(rng.multinomial(setting.users, mix))
        panel = rng.multinomial(setting.panel, counts[-1] / setting.users)
        reports.append(sum(rng.multinomial(n, row) for n, row in zip(panel, q, strict=True)) / setting.panel)
    return Campaigns.of(counts, reports, np.full(setting.campaigns, setting.panel))


def judged(campaigns: Campaigns, q: np.ndarray, rng: np.random.Generator, bootstrap: Bootstrap) -> dict[str, Quality]:
    tags = rng.choice(len(q), 1000, p=campaigns.sizes @ campaigns.mixes / campaigns.sizes.sum())
    truth = np.array([rng.choice(q.shape[1], p=q[tag]) for tag in tags])
    return {
        "single tag": methods.single_tag(campaigns, bootstrap),
        "marginal agreement": methods.marginal_agreement(campaigns, bootstrap),
        "regression": methods.constrained_regression(campaigns, bootstrap),
        "EM": methods.expectation_maximisation(campaigns, bootstrap),
        "holdout of 1,000": methods.holdout(tags, truth, q.shape[1], bootstrap),
    }


def recovery(setting: Setting, seeds: int, bootstrap: Bootstrap) -> dict[str, dict[str, float | None]]:
    """By method: error of a row of Q (total variation), of the accuracy, and how often intervals of Q hold it."""
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        campaigns = drawn(setting, TRUTH, rng)
        shares = campaigns.sizes @ campaigns.mixes / campaigns.sizes.sum()
        right = float((shares[1:] * np.diag(TRUTH[1:])).sum() / shares[1:].sum())
        for name, found in judged(campaigns, TRUTH, rng, bootstrap).items():
            score = found.scores.get("accuracy") or found.scores["agreement"]
            row, inside = np.nan, np.nan
            if found.q is not None and found.low is not None and found.high is not None:
                row = float(np.abs(found.q - TRUTH).sum(1).mean() / 2)
                inside = float(((found.low <= TRUTH) & (found.high >= TRUTH)).mean())
            errors.setdefault(name, []).append((row, abs(score.value - right), inside))
    means = {name: np.mean(each, axis=0).tolist() for name, each in errors.items()}
    names = ("row of Q", "accuracy", "covered")
    return {n: {k: None if np.isnan(v) else v for k, v in zip(names, own, strict=True)} for n, own in means.items()}


def ranked(setting: Setting, seeds: int, bootstrap: Bootstrap) -> dict[str, float]:
    """Six sources on the same campaigns: pairs in the right order, the best found, ranks inside their intervals."""
    pairs, best, inside = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        found = {}
        for right in RIGHT:
            wrong = (1 - right) / 2
            q = np.vstack([[1 / 3] * 3, np.full((3, 3), wrong) + np.eye(3) * (right - wrong)])
            found[f"{right:.0%}"] = methods.constrained_regression(drawn(setting, q, rng), bootstrap)
        places = {place.source: place for place in ranking(found)}
        order = [places[name].rank.value for name in found]
        pairs.append(np.mean([a < b for a, b in combinations(order, 2)]))
        best.append(order[0] == 1)
        inside.append(np.mean([p.rank.low <= i + 1 <= p.rank.high for i, p in enumerate(map(places.get, found)) if p]))
    return {"pairs": float(np.mean(pairs)), "best": float(np.mean(best)), "ranks covered": float(np.mean(inside))}


def in_target(folder: Path, seeds: int, queries: int, rows: int, bootstrap: Bootstrap) -> dict[str, dict[str, float]]:
    """Reach of the women in random audiences of the census: the tags alone, and corrected under either assumption."""
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
        corrected = Corrected(estimator, [Source("acme", _from_campaigns(tags, truth, rng, bootstrap))], NAMES)
        for _ in range(queries):
            person = people.slice(int(rng.integers(len(truth))), 1).to_pylist()[0]
            asked = rng.choice(features, rng.integers(1, 4), replace=False).tolist()
            there = np.all([(people[name].to_numpy(zero_copy_only=False) == person[name]) for name in asked], axis=0)
            women = int((there & (truth == 1)).sum())
            if women < 50:
                continue
            query = And(tuple(In(name, (person[name],)) for name in asked))
            for holds in ("tags", "errors"):
                found = corrected.reach(query, "Female", holds)
                inside = found.reach.low <= women <= found.reach.high
                errors.setdefault(f"corrected, {holds} hold", []).append((found.reach.value / women - 1, inside))
                if holds == "tags":
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


def _from_campaigns(tags: np.ndarray, truth: np.ndarray, rng: np.random.Generator, bootstrap: Bootstrap) -> Quality:
    """60 campaigns aimed at tags; the agency reports the true shares of 1,000 users of each."""
    counts, reports, by_tag = [], [], [np.flatnonzero(tags == tag - 1) for tag in range(3)]
    for _ in range(60):
        sizes = rng.multinomial(3000, rng.dirichlet(np.full(3, 0.5)))
        users = np.concatenate([rng.choice(own, size) for own, size in zip(by_tag, sizes, strict=True)])
        counts.append(sizes)
        reports.append(np.bincount(truth[rng.choice(users, 1000)], minlength=2) / 1000)
    return methods.constrained_regression(Campaigns.of(counts, reports, np.full(60, 1000)), bootstrap)


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
    settings = {name: [replace(base, **{name: value}) for value in values] for name, values in varied.items()}
    found: dict[str, Any] = {"base": asdict(base), "seeds": seeds, "samples": samples, "recovery": {}, "ranking": {}}
    for name, own in settings.items():
        found["recovery"][name] = [
            {"value": getattr(each, name), "methods": recovery(each, seeds, bootstrap)} for each in own
        ]
        Console(width=120).print(_table(name, found["recovery"][name]))
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


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    out = Table(name, *rows[0]["methods"], title=f"error of a row of Q / of the accuracy / intervals hold, by {name}")
    for row in rows:
        cells = []
        for own in row["methods"].values():
            cells.append(" / ".join("-" if value is None else f"{value:.1%}" for value in own.values()))
        out.add_row(f"{row['value']:,}", *cells)
    return out


def picture(recovered: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(recovered), figsize=(3.6 * len(recovered), 3.2), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], recovered.items(), strict=True):
        for method, first in rows[0]["methods"].items():
            if first["row of Q"] is not None:
                errors = [row["methods"][method]["row of Q"] for row in rows]
                axis.plot([row["value"] for row in rows], errors, marker="o", label=method)
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("error of a row of Q")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
