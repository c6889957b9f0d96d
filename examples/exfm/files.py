"""Files that are whole or absent, after a crash too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, and move it there when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def packed(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> bytes:
    """Tensors and words as safetensors, which is never pickle."""
    return safetensors.torch.save({name: each.detach().contiguous() for name, each in tensors.items()}, dict(said))


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
