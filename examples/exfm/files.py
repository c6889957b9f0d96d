"""Files that are whole or absent, after a crash too."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from examples.exfm.errors import ExfmError

LOCK = ".lock"


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, and move it there when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def write_json(path: Path, body: Any) -> None:
    """The same for what JSON can say."""
    write(path, json.dumps(body, indent=1).encode() + b"\n")


def alone(folder: Path) -> IO[bytes]:
    """Keep others out of a folder until what is returned is closed, or the process is gone. Raises ExfmError if one is
    there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ExfmError(f"another process works in {folder}: wait for it, or give another folder") from None
    return lock


def packed(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> bytes:
    """Tensors and words as safetensors, which is never pickle."""
    return safetensors.torch.save({name: each.detach().contiguous() for name, each in tensors.items()}, dict(said))


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
