"""What rows, events and names must be, and what to do where they are not: said before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DataError(Exception):
    """A file is missing or is not what its schema says; the message says what to do."""


COLUMNS = (
    ("ids", 2, torch.int64),
    ("bag", 2, torch.int64),
    ("dense", 2, torch.float32),
    ("domain", 1, torch.int64),
    ("labels", 2, torch.float32),
    ("times", 1, torch.int64),
    ("users", 1, torch.int64),
    ("items", 1, torch.int64),
)
"""Of data.Rows: name, dimensions, type."""
KINDS = {torch.int64: "integers", torch.float32: "floats", torch.bool: "true and false"}
RESERVED = ("domain", "bag")
"""Networks read the domain as a field, and features are chosen among the fields and the bag by their names."""


def of_type(name: str, column: object, shape: str, rank: int, dtype: torch.dtype) -> None:
    """Raises DataError for a column of other dimensions or another type."""
    if not isinstance(column, Tensor):
        raise DataError(f"{name} is a tensor of {dtype}, got {type(column).__name__}: torch.tensor(...) makes one")
    if column.dim() == rank and column.dtype == dtype:
        return
    todo = f": convert it with .to({dtype})" if column.dim() == rank else ""
    raise DataError(f"{name} is {dtype} {shape} of {KINDS[dtype]}, got {column.dtype} of {tuple(column.shape)}{todo}")


def columns(rows: object) -> None:
    """Raises DataError for columns of data.Rows that are of different lengths, or of another shape or type."""
    for name, rank, dtype in COLUMNS:
        of_type(name, getattr(rows, name), "(N, columns)" if rank == 2 else "(N,)", rank, dtype)
    counts = {name: len(getattr(rows, name)) for name, *_ in COLUMNS}
    if len(set(counts.values())) > 1:
        raise DataError(f"all columns need as many rows as the labels, got {counts}")


def names_of(title: str, kinds: dict[str, Sequence[str]]) -> None:
    """Raises DataError for names that occur twice among those of a kind, and for fields that others are told by."""
    for kind, names in kinds.items():
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{title} has {kind} of one name, {', '.join(twice)}: give each a name of its own")
    if taken := sorted({*kinds["fields"]} & {*RESERVED}):
        raise DataError(
            f"{title} has a field named {', '.join(taken)}: that is what the rows' domain and bag are called; give the "
            "field another name"
        )


def finite(title: str, numbers: Tensor, names: Sequence[str]) -> None:
    """Raises DataError for numbers (N, D) of which one is nan or inf: every logit of its row would be nan."""
    wrong = ~numbers.isfinite()
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{title}: number {names[column]!r} is {float(numbers[row, column])} in row {row} ({int(wrong.sum())} in "
            "all): fill in what is missing first, for instance with the mean over the training rows"
        )


def labels(title: str, found: Tensor, tasks: Sequence[str]) -> None:
    """Raises DataError for labels (N, T) other than 0, 1 and nan."""
    wrong = ~((found == 0) | (found == 1) | found.isnan())
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{title}: labels are 0 or 1, nan where a row says nothing; {tasks[column]!r} is "
            f"{float(found[row, column])} in row {row}: make a task of each question, as (stars >= 4).float()"
        )


def in_order(title: str, train: Tensor, test: Tensor) -> None:
    """Raises DataError where times (N,) fall within a part, or where all that is tested came before all that is learned
    from. Parts may overlap, as a split by chance has them."""
    for part, times in (("training", train), ("test", test)):
        falls = (times.diff() < 0).nonzero()[:, 0].tolist()
        if falls:
            raise DataError(
                f"{title}: {part} rows lie in the order of time, row {falls[0] + 1} is earlier than the one before it: "
                "sort all columns by times.argsort(stable=True), or give times of 0 where there are none"
            )
    if len(train) and len(test) and int(test.max()) < int(train.min()):
        raise DataError(f"{title}: all test rows are earlier than the training rows: the parts are swapped")


def events(ids: Tensor, seconds: Tensor, mask: Tensor, cardinalities: Sequence[Sequence[int]]) -> None:
    """Raises DataError for events that are not as samples.Events says."""
    of_type("events' ids", ids, "(rows, sources, length, fields)", 4, torch.int64)
    for name, column, dtype in (("events' seconds", seconds, torch.float32), ("events' mask", mask, torch.bool)):
        of_type(name, column, "(rows, sources, length)", 3, dtype)
    rows, sources, length, fields = ids.shape
    if {seconds.shape, mask.shape} != {(rows, sources, length)}:
        raise DataError(
            f"events {tuple(ids.shape)} need seconds and a mask of (rows, sources, length) each, got "
            f"{tuple(seconds.shape)} and {tuple(mask.shape)}"
        )
    wrong = ~(seconds.isfinite() & (seconds >= 0))
    if bool(wrong.any()):
        raise DataError(
            f"events need seconds of at least 0 before the impression, got {float(seconds[wrong][0])} in "
            f"{int(wrong.sum())} places: give 0 where the mask says that there is no event"
        )
    if [len(each) for each in cardinalities] != [fields] * sources:
        raise DataError(f"expected ids for {sources} sources of {fields} fields, got {cardinalities}")
    most = ids.amax((0, 2)) if rows * length else torch.zeros(sources, fields)
    if bool((most >= torch.tensor(cardinalities)).any()) or (rows * length and int(ids.min()) < 0):
        raise DataError(f"event ids lie from 0 to below {cardinalities}, got up to {most.tolist()}")
