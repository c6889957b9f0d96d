"""Events in columns: impressions, and the labels that come later.

An example (a user saw an item) is logged once by each vertical that it is traffic of, always under the same id. Its
label is one event of its own. Every event has two times, in seconds since 1970: `logged`, when the log took it, which
never decreases along the log, and `time`, when it happened by the clock of whoever sent it, which may be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from examples.exfm import files
from examples.exfm.errors import ExfmError

IMPRESSION, LABEL = 0, 1
MOST_VERTICALS = 63
"""An example's verticals are the bits of one int64."""
SCHEMA = "schema.json"
ITEM = "item"
STATES = 3
"""Of an event in a history: its label had not come yet, was 0, was 1."""
LATEST = 253_402_300_799
"""The last second of the year 9999: times beyond it are not in seconds."""
COLUMNS = {"kind": "uint8", "id": "int64", "logged": "int64", "time": "int64", "vertical": "int8", "label": "float32"}
"""The columns of one number an event, and their types, in NumPy's words and in Arrow's."""


@dataclass(frozen=True)
class Schema:
    """fields: names of the ids of an example; cardinalities: ids of each, 0 for unknown; bag: ids of the bag, 0 fills
    it up; most: places in a bag; verticals: their names, by number.

    history: places behind those of the bag, in the same column, for what the user did before the example was shown,
    newest first (`event`). The teacher alone reads them: a student that is served cannot afford to.
    """

    fields: tuple[str, ...]
    cardinalities: tuple[int, ...]
    bag: int
    most: int
    verticals: tuple[str, ...]
    history: int = 0

    def __post_init__(self) -> None:
        if len(self.fields) != len(self.cardinalities):
            raise ExfmError(f"{len(self.fields)} fields have {len(self.cardinalities)} cardinalities: give one each")
        if self.most < 1:
            raise ExfmError(f"a bag has one place at least, not {self.most}")
        if self.history and ITEM not in self.fields:
            raise ExfmError(f"a history is of ids of the field {ITEM!r}; the fields are {', '.join(self.fields)}")
        if not 1 <= len(self.verticals) <= MOST_VERTICALS:
            raise ExfmError(f"a log has 1 to {MOST_VERTICALS} verticals, not {len(self.verticals)}")

    @property
    def places(self) -> int:
        """The width of the column `bag`."""
        return self.most + self.history

    @property
    def item(self) -> int:
        """The number of the field whose ids a history is of."""
        return self.fields.index(ITEM)

    @property
    def kinds_of_event(self) -> int:
        """What stands in a history is below this."""
        return STATES * self.cardinalities[self.item] if self.history else 0

    def vertical(self, name: str) -> int:
        """The number of a vertical."""
        if name not in self.verticals:
            raise ExfmError(f"there is no vertical {name!r}; there are {', '.join(self.verticals)}")
        return self.verticals.index(name)

    def save(self, folder: Path) -> None:
        files.write_json(folder / SCHEMA, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Schema:
        try:
            body = json.loads((folder / SCHEMA).read_text(encoding="utf-8"))
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in body.items()})
        except FileNotFoundError:
            raise ExfmError(f"{folder} holds no log: it has no {SCHEMA}; make one with `replay`") from None
        except (ValueError, TypeError) as error:
            raise ExfmError(f"{folder / SCHEMA} cannot be read: {error}; make the log again") from None


@dataclass(frozen=True, eq=False)
class Events:
    """N events.

    kind      (N,) uint8     IMPRESSION or LABEL
    id        (N,) int64     of the example
    logged    (N,) int64     seconds
    time      (N,) int64     seconds
    vertical  (N,) int8      whose traffic; -1 for a label
    label     (N,) float32   NaN for an impression
    ids       (N, fields) int32, bag (N, places) int32    0 for a label
    """

    kind: NDArray[np.uint8]
    id: NDArray[np.int64]
    logged: NDArray[np.int64]
    time: NDArray[np.int64]
    vertical: NDArray[np.int8]
    label: NDArray[np.float32]
    ids: NDArray[np.int32]
    bag: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: Any) -> Events:
        """Some of them, by slice, mask or numbers."""
        return Events(*(getattr(self, each.name)[rows] for each in fields(self)))

    def to_table(self) -> pa.Table:
        columns = {name: pa.array(getattr(self, name)) for name in COLUMNS}
        columns |= {name: wide(getattr(self, name)) for name in ("ids", "bag")}
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Events:
        """Raises ExfmError for a table that lacks a column, or has one of another kind, with holes, or with numbers
        that its type cannot hold."""
        lacking = [name for name in (*COLUMNS, "ids", "bag") if name not in table.column_names]
        if lacking:
            raise ExfmError(
                f"these are no events: no {', '.join(lacking)}; columns are {', '.join(table.column_names)}"
            )
        narrow = [_numbers(name, table[name], kind).to_numpy() for name, kind in COLUMNS.items()]
        return cls(*narrow, *(_lists(name, table[name]) for name in ("ids", "bag")))


def _numbers(name: str, column: Any, kind: str) -> Any:
    """A column of one number an event, as this type."""
    wanted = pa.from_numpy_dtype(kind)
    right = pa.types.is_floating if pa.types.is_floating(wanted) else pa.types.is_integer
    if column.null_count:
        raise ExfmError(f"these are no events: {name} has values that are missing")
    if not right(column.type):
        raise ExfmError(f"these are no events: {name} has {column.type}; expected {wanted}")
    try:
        return column.cast(wanted)  # checked: a number that does not fit is an error
    except pa.ArrowInvalid as error:
        raise ExfmError(f"these are no events: {name}: {error}") from None


def _lists(name: str, column: Any) -> NDArray[np.int32]:
    """A column of so many ids an event."""
    if not pa.types.is_fixed_size_list(column.type):
        raise ExfmError(f"these are no events: {name} has {column.type}; expected lists of one size")
    if column.null_count:
        raise ExfmError(f"these are no events: {name} has values that are missing")
    values = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return _numbers(name, values, "int32").to_numpy().reshape(-1, column.type.list_size)


def concat(parts: Sequence[Events]) -> Events:
    """One after another; at least one."""
    if len(parts) == 1:
        return parts[0]
    return Events(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Events)))


def impressions(
    ids: NDArray[Any],
    bag: NDArray[Any],
    *,
    id: NDArray[Any],
    time: NDArray[Any],
    vertical: NDArray[Any],
    logged: NDArray[Any] | None = None,
) -> Events:
    """Impressions, logged when they happen unless said otherwise.

    ids (N, fields), bag (N, places): numbers of rows in the tables, below 2**31; hashes have to be numbered first. id,
    time, logged (N,): seconds since 1970. vertical (N,): numbers, as `Schema.vertical` gives. Raises ExfmError for what
    does not fit.
    """
    n, time = len(id), seconds("time", time)
    return Events(
        np.full(n, IMPRESSION, np.uint8),
        whole("id", id, np.int64),
        time if logged is None else seconds("logged", logged),
        time,
        whole("vertical", vertical, np.int8),
        np.full(n, np.nan, np.float32),
        whole("ids", ids, np.int32),
        whole("bag", bag, np.int32),
    )


def labels(schema: Schema, *, id: NDArray[Any], time: NDArray[Any], label: NDArray[Any]) -> Events:
    """Labels, logged when they are known. id, time (seconds since 1970), label (N,)."""
    n = len(id)
    return Events(
        np.full(n, LABEL, np.uint8),
        whole("id", id, np.int64),
        seconds("time", time),
        seconds("time", time),
        np.full(n, -1, np.int8),
        np.asarray(label).astype(np.float32),
        np.zeros((n, len(schema.fields)), np.int32),
        np.zeros((n, schema.places), np.int32),
    )


def whole(name: str, values: Any, kind: type[np.integer]) -> NDArray[Any]:
    """Whole numbers as this type. Raises ExfmError for others, and for those that it cannot hold."""
    found = np.asarray(values)
    if found.size and not (found.dtype.kind in "iub" or (found.dtype.kind == "f" and (found == np.floor(found)).all())):
        raise ExfmError(f"{name} has {found.dtype}; expected whole numbers")
    bounds = np.iinfo(kind)
    if found.size and not bounds.min <= int(found.min()) <= int(found.max()) <= bounds.max:
        raise ExfmError(f"{name} goes from {found.min()} to {found.max()}; expected {bounds.min} to {bounds.max}")
    return found.astype(kind)


def seconds(name: str, values: Any) -> NDArray[np.int64]:
    """Times. Raises ExfmError for what can be no second since 1970."""
    found = np.asarray(values)
    found = whole(name, np.floor(found) if found.dtype.kind == "f" else found, np.int64)  # Python's clock is a float
    if found.size and not 0 <= int(found.min()) <= int(found.max()) <= LATEST:
        raise ExfmError(f"{name} goes from {found.min()} to {found.max()}; expected seconds since 1970")
    return found


def event(item: Any, state: Any) -> Any:
    """What a history says of an item; state: 0 while its label had not come, then 1 + label. 0 is no event."""
    return item * STATES + state


def in_order(parts: Sequence[Events]) -> Events:
    """All of them in the order of `logged`; of one second in the order given."""
    whole = concat(parts)
    return whole.take(np.argsort(whole.logged, kind="stable"))


def wide(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, K) as an Arrow column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """An Arrow column of lists of one length as (N, K)."""
    size = column.type.list_size
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # combined from no or several parts
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], column.type)
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
