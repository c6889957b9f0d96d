"""Campaigns from a file: one row a campaign, checked column by column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from examples.audience.quality.campaigns import Campaigns
from loka_compile.sampling.source_quality import SUM_TOLERANCE

FILE = """The file has one row a campaign, as Parquet or CSV. Its columns:
  campaign              its name; no two are alike
  <source>:             users of the campaign that the source does not tag
  <source>:<category>   users that it tags so; one column for every category
  share:<category>      the share of the campaign that is of the category in truth, a fraction: 0.25, not 25 (%)
  users                 perhaps: how many users those shares rest on; by default all of the campaign
  vertical              perhaps: the campaign's kind
Several sources may stand side by side. For reach corrected by tags, a source is named as the feature of the sample that
holds its tags; a tag is a category's name, or null where there is none."""


class TableError(ValueError):
    """A file of campaigns that cannot be read, with the column and the campaign at fault."""


@dataclass(frozen=True, eq=False)
class Table:
    """data: what the agency and one source say of each campaign; categories: their names; verticals [C], or None."""

    data: Campaigns
    categories: tuple[str, ...]
    campaigns: tuple[str, ...]
    verticals: tuple[str, ...] | None


def read(path: Path, source: str = "tag") -> Table:
    """The campaigns of a Parquet or CSV file.

    Columns: `campaign`, its name; `<source>:<category>` for every category and `<source>:` for the untagged, how many
    users of the campaign have that tag; `share:<category>`, the share the agency reports; `users`, on how many users
    that rests (the sum of the tags if there is none); `vertical`, if there is one. A file may hold several sources.
    """
    table = _load(path)
    categories = tuple(name.removeprefix("share:") for name in table.column_names if name.startswith("share:"))
    if len(categories) < 2:
        raise TableError(f"{path} has no two columns `share:<category>`; its columns are {table.column_names}")
    wanted = ["campaign", f"{source}:", *(f"{source}:{category}" for category in categories)]
    if missing := [name for name in wanted if name not in table.column_names]:
        known, bare = _sources(table.column_names), f"; `{source}:` is for the untagged" * (f"{source}:" in missing)
        raise TableError(
            f"{path} has no columns {missing}; its sources are {known}, its categories {list(categories)}{bare}"
        )
    names = tuple(map(str, table["campaign"].to_pylist()))
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise TableError(f"{path}: campaign {twice!r} occurs twice")
    counts = np.stack([_numbers(table, name, names) for name in wanted[1:]], axis=1)
    reports = np.stack([_numbers(table, f"share:{category}", names) for category in categories], axis=1)
    for name, total in zip(names, reports.sum(1).tolist(), strict=True):
        if abs(total - 1) > SUM_TOLERANCE:
            hint = "; they are fractions, 0.25 and not 25" if total > 2 else ""
            raise TableError(f"{path}: the shares reported for campaign {name!r} sum to {total:g}, not 1{hint}")
    sizes = _numbers(table, "users", names) if "users" in table.column_names else None
    verticals = tuple(map(str, table["vertical"].to_pylist())) if "vertical" in table.column_names else None
    try:
        data = Campaigns.of(counts, reports, sizes)
    except ValueError as error:
        raise TableError(f"{path}, source {source!r}: {error}") from None
    return Table(data, categories, names, verticals)


def sources_of(path: Path) -> list[str]:
    """The sources a file holds, in the order of its columns: who has `<source>:` or a column of a category of shares.

    Other columns with a colon, `time:utc` say, are none.
    """
    return _sources(_load(path).column_names)


def _sources(names: list[str]) -> list[str]:
    columns = [name.partition(":") for name in names if ":" in name]
    tags = {"", *(category for name, _, category in columns if name == "share")}
    return list(dict.fromkeys(name for name, _, tag in columns if name != "share" and tag in tags))


def _load(path: Path) -> pa.Table:
    if not path.exists():
        raise TableError(f"there is no file {path}")
    try:
        return pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise TableError(f"{path} is no {'CSV' if path.suffix == '.csv' else 'Parquet'} file: {error}") from None


def _numbers(table: pa.Table, name: str, campaigns: tuple[str, ...]) -> np.ndarray:
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise TableError(f"column {name!r} holds {column.type}; numbers are expected")
    if column.null_count:
        first = pc.index(pc.is_null(column), True).as_py()
        raise TableError(f"column {name!r} has no value for campaign {campaigns[first]!r}")
    return column.to_numpy().astype(float)
