"""Where a log comes from: what it was made of is written down beside it, so that nobody goes on with another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.exfm import files
from examples.exfm.errors import ExfmError
from examples.exfm.stream import drift, log, movielens
from examples.exfm.stream.events import SCHEMA
from examples.exfm.stream.log import ORIGIN, origin_of

DRIFT_DAYS = 7


def record(folder: Path, data: str | None, days: int | None, history: int | None, seed: int | None) -> int:
    """Have the log of these data; how many events were written, 0 if it was there. None is whatever is there, or else
    MovieLens, all of it (seven days of a stream that drifts), no history, seed 0."""
    made = {"data": data or "movielens", "days": days, "history": history or 0, "seed": seed or 0}
    if data == "drift":
        made["days"] = days or DRIFT_DAYS
    asked = {"data": data, "days": days, "history": history, "seed": seed}

    def make() -> int:
        if data == "drift":
            stream = drift.Drift(hours=24 * made["days"], seed=made["seed"], history=made["history"])
            return log.write(folder, stream.schema, stream.events())
        return movielens.record(folder, seed=made["seed"], days=days, history=made["history"])

    return once(folder, made, make, {name: value for name, value in asked.items() if value is not None})


def once(folder: Path, made: Mapping[str, Any], make: Callable[[], int], asked: Mapping[str, Any] | None = None) -> int:
    """Make a log, unless the folder holds it; how many events were written.

    made: what it is made of, as JSON. asked: what of that has to be so if the log is there, by default all. Raises
    ExfmError if it is not, and if another process is making it. A log that has no note beside it is somebody's own, and
    taken as it is.
    """
    if not (folder / SCHEMA).exists():
        with files.alone(folder):
            if not (folder / SCHEMA).exists():
                files.write_json(folder / ORIGIN, dict(made))
                return make()
    found = origin_of(folder)
    wanted = made if asked is None else asked
    others = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if found and others:
        raise ExfmError(f"{folder} holds another log ({'; '.join(others)}): give another folder, or remove it")
    return 0
