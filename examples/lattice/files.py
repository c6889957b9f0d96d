"""Files that are whole or absent, and locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from examples.lattice.data import DataError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path of this writer's own, beside `path`, to write to. What was written then replaces `path`; nothing does if
    writing fails."""
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, body: Any) -> None:
    """Replaces the file whole."""
    with whole(path) as beside:
        beside.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


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


def merge_json(path: Path, merge: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Replaces the mapping that a file holds by what `merge` makes of it, and gives that. No other process or thread
    that merges comes between, so what others have added stays."""
    with alone(path.with_name(f".{path.name}.lock"), stays=False):
        body = merge(read_mapping(path))
        write_json(path, body)
        return body


@contextmanager
def alone(lock: Path, stays: bool = True) -> Iterator[None]:
    """While no other process or thread is here with this file, which is empty, and goes with the last unless it
    stays."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(file.fileno(), lock):  # who was here before has taken it away: others lock a new one
                continue
            try:
                yield
            finally:
                if not stays:
                    lock.unlink()
            return


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def worker(of: Path) -> Iterator[str]:
    """A name under which `workers` lists this process while it is here."""
    path = of.with_name(f"{of.name}.worker-{uuid4().hex}")
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def workers(of: Path) -> set[str]:
    """Names of those that are there. A process that was killed has left its file and not its lock: the file goes."""
    found = set()
    for path in of.parent.iterdir():
        if path.name.startswith(f"{of.name}.worker-"):
            with path.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.add(path.name)
                else:
                    path.unlink(missing_ok=True)
    return found
