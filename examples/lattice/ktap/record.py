"""What the teacher writes for a (user, item) pair, as bytes that check themselves.

Layout, little-endian: `KTAP`, version of this layout, width and tasks (u16 each), version of the teacher (u64), when it
was computed (f64, seconds), the embedding (f16), the logits (f32), CRC-32 of the record's key and all before. Bytes
that are anything else, or that lie under another pair's key, are no record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAGIC, VERSION = b"KTAP", 2
HEAD, TAIL = struct.Struct("<4sHHHQd"), struct.Struct("<I")
LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class TeacherId:
    """Whose records these are.

    Two versions of one teacher write the same keys, and a student reads those of the version that it was trained with:
    embeddings of two trainings have nothing in common. Teachers of two names write beside one another, so that a new
    one can fill the store while students still read the old."""

    name: str
    version: int

    def __post_init__(self) -> None:
        if not self.name or not 0 <= self.version < 2**64:
            raise ValueError(
                f"a teacher has a name and a version, a number from 0 to 2^64 - 1; got {self.name!r} and "
                f"{self.version!r}. Raise the version when the teacher is trained anew"
            )


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of B pairs: embedding (B, width) and logits (B, tasks), zero on a miss; hit (B,) bool."""

    embedding: Tensor
    logits: Tensor
    hit: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Knowledge:
        return Knowledge(self.embedding[rows], self.logits[rows], self.hit[rows])


@dataclass(frozen=True)
class Misses:
    """Why pairs were misses: nothing was there; bytes that are no record of this pair; the record of another version of
    the teacher; one computed at the impression or later, whose teacher may have seen what came of it."""

    absent: int = 0
    garbage: int = 0
    other: int = 0
    late: int = 0


def nothing(count: int, width: int, tasks: int) -> Knowledge:
    """B misses."""
    return Knowledge(torch.zeros(count, width), torch.zeros(count, tasks), torch.zeros(count, dtype=torch.bool))


def key(user: int, item: int, teacher: TeacherId) -> bytes:
    """Where a pair's record lies."""
    return f"ktap:{teacher.name}:{user}:{item}".encode()


def encode(
    keys: Sequence[bytes], embedding: Tensor, logits: Tensor, computed: Sequence[float], teacher: TeacherId
) -> list[bytes]:
    """One record a key of embedding (B, width) and logits (B, tasks), computed when. Numbers beyond float16 are cut."""
    half = embedding.detach().float().clamp(-LARGEST, LARGEST).cpu().numpy().astype("<f2")
    full = logits.detach().float().cpu().numpy().astype("<f4")
    head = MAGIC, VERSION, half.shape[1], full.shape[1], teacher.version
    rows = zip(computed, half, full, strict=True)
    bodies = [HEAD.pack(*head, when) + e.tobytes() + z.tobytes() for when, e, z in rows]
    return [body + TAIL.pack(checksum(key, body)) for key, body in zip(keys, bodies, strict=True)]


def decode(
    keys: Sequence[bytes],
    values: Sequence[bytes | None],
    width: int,
    tasks: int,
    before: Sequence[float],
    teacher: TeacherId,
) -> tuple[Knowledge, Misses]:
    """What of the values under these keys is this teacher's and was computed earlier than `before`; why the rest is
    not."""
    found, absent, garbage, other, late = nothing(len(values), width, tasks), 0, 0, 0, 0
    for row, (key, value, until) in enumerate(zip(keys, values, before, strict=True)):
        if value is None:
            absent += 1
            continue
        if not sound(key, value):
            garbage += 1
            continue
        magic, version, its_width, its_tasks, its_teacher, computed = HEAD.unpack_from(value)
        if (magic, version) == (MAGIC, VERSION) and its_teacher != teacher.version:
            other += 1
            continue
        size = HEAD.size + 2 * width + 4 * tasks + TAIL.size
        if (magic, version, its_width, its_tasks, len(value)) != (MAGIC, VERSION, width, tasks, size):
            garbage += 1
            continue
        embedding = np.frombuffer(value, "<f2", width, HEAD.size).astype(np.float32)
        logits = np.frombuffer(value, "<f4", tasks, HEAD.size + 2 * width).copy()
        if not np.isfinite(embedding).all() or not np.isfinite(logits).all() or not np.isfinite(computed):
            garbage += 1
        elif computed < until:
            found.embedding[row] = torch.from_numpy(embedding)
            found.logits[row] = torch.from_numpy(logits)
            found.hit[row] = True
        else:
            late += 1
    return found, Misses(absent, garbage, other, late)


def checksum(key: bytes, body: bytes) -> int:
    """Of a record without its own; with the key, so that it holds for one pair alone."""
    return zlib.crc32(body, zlib.crc32(key))


def sound(key: bytes, value: bytes) -> bool:
    """Whether these bytes are as they were written, and under the key that they were written for."""
    if not isinstance(value, bytes) or len(value) < HEAD.size + TAIL.size:
        return False
    return checksum(key, value[: -TAIL.size]) == TAIL.unpack_from(value, len(value) - TAIL.size)[0]
