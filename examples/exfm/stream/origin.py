"""Where a log comes from: what it was made of is written down beside it, so that nobody goes on with another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.exfm import files
from examples.exfm.errors import ExfmError
from examples.exfm.stream import drift, log, movielens
from examples.exfm.stream.events import SCHEMA

ORIGIN = "origin.json"
DRIFT_DAYS = 7


def record(folder: Path, data: str | None, days: int | None, history: int | None, seed: int | None) -> int:
    """Have the log of these data; how many events were written, 0 if it was there. None is whatever is there, or else
    MovieLens, all of it (seven days of a stream that drifts), no history, seed 0."""

    def make() -> int:
        if data == "drift":
            stream = drift.Drift(hours=24 * (days or DRIFT_DAYS), seed=seed or 0, history=history or 0)
            return log.write(folder, stream.schema, stream.events())
        return movielens.record(folder, seed=seed or 0, days=days, history=history or 0)

    return once(folder, {"data": data, "days": days, "history": history, "seed": seed}, make)


def once(folder: Path, asked: Mapping[str, Any], make: Callable[[], int]) -> int:
    """Make a log, unless the folder holds it; how many events were written.

    asked: what it is made of, as JSON; None agrees with anything. Raises ExfmError if the log there was made of
    something else. One that has no note beside it is somebody's own, and taken as it is.
    """
    path = folder / ORIGIN
    if not (folder / SCHEMA).exists():
        files.write(path, json.dumps(dict(asked), indent=1).encode() + b"\n")
        return make()
    made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = {name: value for name, value in asked.items() if value is not None and name in made}
    others = [f"{name} {made[name]}, not {value}" for name, value in told.items() if made[name] != value]
    if others:
        raise ExfmError(f"{folder} holds another log ({'; '.join(others)}): give another folder, or remove it")
    return 0
