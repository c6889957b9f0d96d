"""How long an answer takes, against duckdb and polars on the full table, and how building grows.

    python -m examples.audience.bench_latency [--population-rows 10000000] [--rows 30000 3000000]
        [--counters 0 1 4 16] [--rehearse] [--json FILE]

The population is drawn from the insurance network, 27 features. Queries are asked one at a time; each query goes to
every engine before the next one does. Counters: 0 is this process, else Ray actors. A build is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples.audience import data
from examples.audience.bench_accuracy import sizes
from examples.audience.reach import store
from examples.audience.reach.columns import encoded
from examples.audience.reach.counters import Counters, Local
from examples.audience.reach.design import drawn_trial
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In, to_json

NETWORK = "insurance"
SHARDS = 16
Engine = Callable[[And], float]


def queries(paths: Sequence[Path], folder: Path, count: int) -> list[And]:
    """Conjunctions around rows of the first file."""
    schema = store.load(folder).schema
    codes = encoded(pq.ParquetFile(paths[0]).read_row_group(0), schema)
    rng, found = np.random.default_rng(11), []
    while len(found) < count:
        if trial := drawn_trial(codes, schema, rng):
            values = {name: schema.feature(name).values for name, _ in trial}
            found.append(And(tuple(In(name, tuple(values[name][code] for code in own)) for name, own in trial)))
    return found


BUILD = """
import sys
from pathlib import Path
from examples.audience.__main__ import main
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(status)
"""
"""A build that says at its end how much memory it had. (What the system says of a child counts its parent's, too.)"""

SERVE = """
import json
import sys
from pathlib import Path
from examples.audience.bench_latency import memory
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import from_json
before = memory()
estimator = Estimator(Local(Path(sys.argv[1])), seconds=60)
for query in json.load(sys.stdin):
    estimator.reach(Question(from_json(query)))
print(memory() - before)
"""


def served(folder: Path, asked: Sequence[And]) -> float:
    """MB that a sample takes in a process of its own that has answered the questions."""
    questions = json.dumps([to_json(each) for each in asked])
    done = subprocess.run([sys.executable, "-c", SERVE, str(folder)], input=questions, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{folder} could not be served: {done.stderr}")
    return float(done.stdout)


def built(paths: Sequence[Path], features: Sequence[str], rows: int, out: Path) -> dict[str, Any]:
    """Seconds, CPU seconds and peak memory of a build in a process of its own."""
    said = out.with_suffix(".status")
    command = [sys.executable, "-c", BUILD, str(said), "build", *map(str, paths), "--features", *features]
    command += ["--rows", str(rows), "--shards", str(SHARDS), "--out", str(out)]
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"the build of {out} ended with status {status}")
    seconds = time.perf_counter() - began
    population = sum(pq.ParquetFile(path).metadata.num_rows for path in paths)
    return {
        "rows": population,
        "features": len(features),
        "sample": rows,
        "seconds": seconds,
        "cpu seconds": used.ru_utime + used.ru_stime,
        "peak MB": memory("VmHWM", said),
        "file MB": sum(path.stat().st_size for path in paths) / 2**20,
    } | {f"{name} MB": size / 2**20 for name, size in sizes(out).items()}


@contextmanager
def counting(folder: Path, counters: int) -> Iterator[Counters]:
    """The counters of a sample; 0 for this process."""
    if not counters:
        yield Local(folder)
        return
    from examples.audience.reach.ray_counters import OnRay

    made: Counters = OnRay(folder, counters)
    yield made
    made.close()


def on_duckdb(connection: duckdb.DuckDBPyConnection) -> Engine:
    def ask(query: And) -> float:
        parts = (f'"{each.feature}" in ({", ".join(repr(v) for v in each.values)})' for each in query.all)
        found = connection.execute(f"select count(*) from people where {' and '.join(parts)}").fetchone()
        return float(found[0]) if found else 0.0

    return ask


def on_polars(people: pl.DataFrame) -> Engine:
    def ask(query: And) -> float:
        wanted = [pl.col(each.feature).is_in(list(each.values)) for each in query.all]
        return float(people.lazy().filter(pl.all_horizontal(wanted)).select(pl.len()).collect().item())

    return ask


def timed(engines: dict[str, Engine], asked: Sequence[And]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Seconds and answers of each engine; a query goes to all of them before the next one."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, list[float]] = {name: [] for name in engines}
    for query in asked:
        for name, ask in engines.items():
            began = time.perf_counter()
            answers[name].append(ask(query))
            seconds[name].append(time.perf_counter() - began)
    return {name: (np.array(seconds[name]), np.array(answers[name])) for name in engines}


def summed(seconds: np.ndarray, answers: np.ndarray, truth: np.ndarray, population: int) -> dict[str, float]:
    """Milliseconds, and relative errors of queries that at least 0.01 % match."""
    known = truth >= 1e-4 * population
    off = np.abs(answers[known] / truth[known] - 1)
    found = {f"p{q}": float(np.percentile(seconds, q) * 1000) for q in (50, 99)}
    return found | {"median error": float(np.median(off)), "rms error": float(np.sqrt(np.mean(off**2)))}


def memory(kind: str = "VmRSS", status: Path = Path("/proc/self/status")) -> float:
    """MB of this process, now; or what `status` says."""
    [line] = [each for each in status.read_text().splitlines() if each.startswith(kind)]
    return int(line.split()[1]) / 1024


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    network = data.network(NETWORK)
    features = list(network.values)
    result: dict[str, Any] = {"population": options.population_rows, "builds": [], "latency": []}
    paths = network.write(folder / "population", options.population_rows)
    console = Console(width=120)
    for i, rows in enumerate(options.build_rows):
        part = network.write(folder / f"part-{rows}", rows)
        for count in (len(features), *(options.features if i == 0 else ())):
            result["builds"].append(built(part, features[:count], min(30_000, rows // 4), folder / "s"))
            console.print(result["builds"][-1])
    for rows in options.rows:
        result["builds"].append(built(paths, features, rows, folder / f"s-{rows}"))
        console.print(result["builds"][-1])

    asked = queries(paths, folder / f"s-{options.rows[0]}", options.queries)
    connection = duckdb.connect(config={"threads": options.threads})
    names = ", ".join(repr(str(path)) for path in paths)
    for name in features:  # a byte a value, as fast as it gets
        connection.execute(f'create type "of {name}" as enum ({", ".join(map(repr, network.values[name]))})')
    typed = ", ".join(f'"{name}"::"of {name}" as "{name}"' for name in features)
    connection.execute(f"create table people as select {typed} from read_parquet([{names}])")
    [used] = connection.execute("select sum(memory_usage_bytes) from duckdb_memory()").fetchall()[0]
    result["duckdb MB"] = float(used) / 2**20
    kinds = [pl.col(name).cast(pl.Enum(network.values[name])) for name in features]
    people = pl.concat([pl.read_parquet(path).with_columns(kinds) for path in paths])
    result["polars MB"] = float(people.estimated_size("mb"))
    engines = {"duckdb": on_duckdb(connection), "polars": on_polars(people)}
    for rows in options.rows:
        result[f"{rows:,} rows MB"] = served(folder / f"s-{rows}", asked)
        local = Estimator(Local(folder / f"s-{rows}"), seconds=60)
        engines[f"{rows:,} rows here"] = lambda query, local=local: local.reach(Question(query)).value
        local.reach(Question(asked[0]))
    found = timed(engines, asked)
    truth = found["duckdb"][1]
    for name, (seconds, answers) in found.items():
        result["latency"].append({"engine": name, **summed(seconds, answers, truth, options.population_rows)})
    del people, engines, local
    connection.close()
    if any(options.counters):
        from examples.audience.reach.ray_counters import started

        with started(num_cpus=2, object_store_memory=200 * 2**20):
            for rows in options.rows:
                for counters in filter(None, options.counters):
                    with counting(folder / f"s-{rows}", counters) as held:
                        estimator = Estimator(held, seconds=60)
                        ask: Engine = lambda query, estimator=estimator: estimator.reach(Question(query)).value  # noqa: E731
                        ask(asked[0])
                        seconds, answers = timed({"ray": ask}, asked)["ray"]
                    name = f"{rows:,} rows, {counters} counters"
                    result["latency"].append(
                        {"engine": name, **summed(seconds, answers, truth, options.population_rows)}
                    )
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population-rows", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[30_000, 3_000_000], help="of the samples")
    parser.add_argument("--build-rows", type=int, nargs="+", default=[100_000, 1_000_000], help="of further builds")
    parser.add_argument("--features", type=int, nargs="*", default=[7, 14], help="of builds of the first of these")
    parser.add_argument("--counters", type=int, nargs="+", default=[0, 1, 4, 16])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="of duckdb")
    parser.add_argument("--rehearse", action="store_true", help="a small population, in this process alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.rehearse:
        options.population_rows, options.rows, options.build_rows = 4000, [300], [1000]
        options.counters, options.queries = [0], 10
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    out = Table("engine", "p50 ms", "p99 ms", "median error", "rms error", title=f"{found['population']:,} rows")
    for row in found["latency"]:
        out.add_row(row["engine"], *(f"{row[k]:.2f}" for k in ("p50", "p99")), *(f"{row[k]:.2%}" for k in ERRORS))
    Console(width=120).print(out)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


ERRORS = ("median error", "rms error")

if __name__ == "__main__":
    main()
