"""A population whose features depend on each other, as Parquet files, and answers found by looking at all of it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.audience.reach.columns import Columns
from examples.audience.reach.query import And, Everybody, In, Not, Or, Range

COLUMNS = Columns(("country", "age", "premium", "device"), ("spend",), ("click",))
COUNTRIES = np.array(["US", "DE", "JP", "FR", "IS"])
DEVICES = np.array(["phone", "web", "tv"])


def table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    country = rng.choice(5, rows, p=[0.6, 0.25, 0.1, 0.045, 0.005])
    age = np.minimum(rng.poisson(1 + country), 6)
    premium = rng.random(rows) < 0.02 + 0.08 * age
    spend = np.exp(rng.normal(0.3 * age, 1))
    click = (rng.random(rows) < 0.02 + 0.02 * age).astype(float)
    device = DEVICES[rng.choice(3, rows, p=[0.7, 0.25, 0.05])]
    columns = {"country": COUNTRIES[country], "age": age, "premium": premium, "device": device}
    return pa.table(columns | {"spend": spend, "click": click})


def files(folder: Path, days: int = 3, rows: int = 8000, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for day in range(days):
        found.append(folder / f"day-{day}.parquet")
        pq.write_table(table(rows, seed * 1000 + day), found[-1], row_group_size=3000)
    return found


def matches(query, columns) -> np.ndarray:
    """[N] bool, read off the values themselves."""
    match query:
        case Everybody():
            return np.ones(len(next(iter(columns.values()))), bool)
        case In(name, values):
            return np.array([value in values for value in columns[name].tolist()], bool)
        case Range(name, low, high):
            column = columns[name]
            return (column >= (-np.inf if low is None else low)) & (column < (np.inf if high is None else high))
        case Not(of):
            return ~matches(of, columns)
        case And(parts):
            return np.all([matches(each, columns) for each in parts], axis=0)
        case Or(parts):
            return np.any([matches(each, columns) for each in parts], axis=0)
    raise TypeError(query)


def columns_of(paths) -> dict[str, np.ndarray]:
    whole = pa.concat_tables([pq.read_table(path) for path in paths])
    return {name: whole[name].to_numpy() for name in whole.column_names}
