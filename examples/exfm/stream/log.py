"""The event log: one Parquet file an hour of `logged`, each whole or absent, read again in the same chunks every time.

A chunk is some consecutive row groups, so a position (the next hour, the next group in it) is where one ends and
the next begins. What is read from a position on does not depend on what was read before, which is what makes a restart
exact. Pages have checksums: a damaged row group is left out, counted and named, and the rest of the file is read. So
are events of another hour than the file's, which would move the stream's clock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from examples.exfm import files
from examples.exfm.counters import Counters
from examples.exfm.errors import ExfmError
from examples.exfm.stream.events import SCHEMA, Events, Schema, concat, in_order

HOUR = 3600
GROUP_ROWS = 4096
WRITING, ORIGIN = ".writing", "origin.json"
"""Files that are there while a log is being written, and that say what it was made of."""
Position = dict[str, int]
"""Where a source goes on: {"hour", "group"} of a log, {"partition 0": offset} of Kafka. Plain data, kept in
checkpoints."""


class Source(Protocol):
    """Where events come from. The same position gives the same events. origin: what they were made of, as JSON."""

    schema: Schema
    origin: dict[str, Any]

    def chunks(self, position: Position | None = None) -> Iterator[tuple[Events, Position]]:
        """Events from `position` on, a chunk at a time, each with the position behind it."""
        ...


@dataclass
class Log:
    """A folder of hours. chunk_rows: rows after which a chunk ends; span: hours after which it ends, however few rows
    it has, so that a quiet stream still moves. counters: what could not be read."""

    folder: Path
    chunk_rows: int = 4096
    span: int = 6
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.schema, self.origin = Schema.load(self.folder), origin_of(self.folder)

    @property
    def hours(self) -> list[int]:
        """The hours there are, since 1970."""
        return sorted(hour_of(path) for path in self.folder.glob("*.parquet"))

    def chunks(self, position: Position | None = None) -> Iterator[tuple[Events, Position]]:
        start, first_group = (position["hour"], position["group"]) if position else (0, 0)
        parts: list[Events] = []
        rows, began = 0, start
        for hour in self.hours:
            if hour < start:
                continue
            if parts and hour >= began + self.span:
                yield concat(parts), {"hour": hour, "group": 0}
                parts, rows = [], 0
            for group, events in self._groups(hour, first_group if hour == start else 0):
                if not parts:
                    began = hour
                parts.append(events)
                rows += len(events)
                if rows >= self.chunk_rows:
                    yield concat(parts), {"hour": hour, "group": group + 1}
                    parts, rows = [], 0
        if parts:
            yield concat(parts), {"hour": hour + 1, "group": 0}

    def _groups(self, hour: int, first: int) -> Iterator[tuple[int, Events]]:
        """The row groups that can be read, from `first` on. A file that cannot be opened has none."""
        path = self.folder / name_of(hour)
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except Exception as error:  # Arrow raises many kinds for a damaged file
            self.counters.add("corrupt_file", words=f"{path.name}: {_line(error)}")
            return
        with file:
            for group in range(first, file.num_row_groups):
                try:
                    events = as_said(Events.from_table(file.read_row_group(group)), self.schema)
                except Exception as error:
                    self.counters.add("corrupt_group", words=f"{path.name}, row group {group}: {_line(error)}")
                    continue
                here = events.logged // HOUR == hour
                if not here.all():
                    count = int((~here).sum())
                    self.counters.add("wrong_hour", count, f"{path.name}, row group {group}: {count} events")
                    events = events.take(here)
                if len(events):
                    yield group, events


def write(folder: Path, schema: Schema, parts: Iterable[Events], group_rows: int = GROUP_ROWS) -> int:
    """Write a log of events in the order of `logged`; how many. Only the hour at hand is held in memory.

    The schema comes last: a folder without one holds no log, at most the hours of one whose writing was cut off, which
    are written anew. Raises ExfmError if there is a log already, or hours that `write` did not write, and for events
    that are not as the schema says.
    """
    begun, there = folder / WRITING, list(folder.glob("*.parquet"))
    if (folder / SCHEMA).exists() or (there and not begun.exists()):
        raise ExfmError(f"{folder} holds a log already, or hours of one: give another folder, or remove it")
    files.write(begun, b"")
    for path in there:
        path.unlink()
    held: list[Events] = []
    total = 0
    for part in parts:
        total += len(part)
        as_said(part, schema)
        for hour, events in _by_hour(part):
            if held and int(held[0].logged[0]) // HOUR != hour:
                write_hour(folder, concat(held), group_rows)
                held = []
            held.append(events)
    if held:
        write_hour(folder, concat(held), group_rows)
    os.sync()  # every hour is on the disk before the log is known
    schema.save(folder)
    begun.unlink()
    return total


def as_said(events: Events, schema: Schema) -> Events:
    """The events. Raises ExfmError if their ids are not as many as the schema says."""
    shape, wanted = (events.ids.shape[1], events.bag.shape[1]), (len(schema.fields), schema.places)
    if shape != wanted:
        raise ExfmError(f"examples have {shape} ids, in fields and in the bag; the log's schema says {wanted}")
    return events


def write_hour(folder: Path, events: Events, group_rows: int = GROUP_ROWS) -> Path:
    """One hour's file, whole or not at all."""
    events = in_order([events])
    hour = int(events.logged[0]) // HOUR
    if int(events.logged[-1]) // HOUR != hour:
        raise ExfmError(f"events from {name_of(hour)} and {name_of(int(events.logged[-1]) // HOUR)}: write one hour")
    path = folder / name_of(hour)
    made = folder / f".{path.name}.{os.getpid()}"
    pq.write_table(events.to_table(), made, row_group_size=group_rows, write_page_checksum=True, compression="zstd")
    os.replace(made, path)
    return path


def origin_of(folder: Path) -> dict[str, Any]:
    """What is written down beside a log of what it was made of (origin.py); nothing if it is somebody's own."""
    path = folder / ORIGIN
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise ExfmError(f"{path} cannot be read: {error}; remove it to take the log as it is") from None


def name_of(hour: int) -> str:
    return datetime.fromtimestamp(hour * HOUR, UTC).strftime("%Y-%m-%dT%H.parquet")


def hour_of(path: Path) -> int:
    try:
        return int(datetime.strptime(path.stem, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()) // HOUR
    except ValueError:
        raise ExfmError(f"{path} is no hour of a log: names are like 1997-09-20T03.parquet; move it away") from None


def _by_hour(events: Events) -> Iterator[tuple[int, Events]]:
    hours = events.logged // HOUR
    if (hours[1:] < hours[:-1]).any():
        raise ExfmError("events are not in the order of `logged`: sort them with `in_order`")
    for hour in sorted(set(hours.tolist())):
        yield hour, events.take(hours == hour)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
