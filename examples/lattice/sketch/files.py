"""JSON files that are whole or absent, and locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.lattice.data import DataError


def write_json(path: Path, body: Any) -> None:
    """Writes beside the file and replaces it whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a file holds, an empty one if there is no file; a DataError names a file that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # cut short, or no text
        raise DataError(f"{path} is damaged ({error}): delete it, what it held is made again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged (expected a mapping, got {found!r:.40}): delete it, it is made again")
    return found


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """While no other process or thread is here with this file, which stays, empty."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
