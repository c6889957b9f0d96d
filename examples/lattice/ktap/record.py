"""What the teacher writes for a (user, item) pair, as bytes that check themselves.

Layout, little-endian: `KTAP`, version, width and tasks (u16 each), when it was computed (f64, seconds), the embedding
(f16), the logits (f32), CRC-32 of all before. Bytes that are anything else are no record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAGIC, VERSION = b"KTAP", 1
HEAD, TAIL = struct.Struct("<4sHHHd"), struct.Struct("<I")
LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of B pairs: embedding (B, width) and logits (B, tasks), zero on a miss; hit (B,) bool."""

    embedding: Tensor
    logits: Tensor
    hit: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Knowledge:
        return Knowledge(self.embedding[rows], self.logits[rows], self.hit[rows])


def nothing(count: int, width: int, tasks: int) -> Knowledge:
    """B misses."""
    return Knowledge(torch.zeros(count, width), torch.zeros(count, tasks), torch.zeros(count, dtype=torch.bool))


def key(user: int, item: int, model: str = "teacher") -> bytes:
    """Where a pair's record lies; `model` keeps the records of different teachers apart."""
    return f"ktap:{model}:{user}:{item}".encode()


def encode(embedding: Tensor, logits: Tensor, computed: Sequence[float]) -> list[bytes]:
    """One record a row of embedding (B, width) and logits (B, tasks), computed when. Numbers beyond float16 are cut."""
    half = embedding.detach().float().clamp(-LARGEST, LARGEST).cpu().numpy().astype("<f2")
    full = logits.detach().float().cpu().numpy().astype("<f4")
    shape = half.shape[1], full.shape[1]
    rows = zip(computed, half, full, strict=True)
    bodies = (HEAD.pack(MAGIC, VERSION, *shape, when) + e.tobytes() + z.tobytes() for when, e, z in rows)
    return [body + TAIL.pack(zlib.crc32(body)) for body in bodies]


def decode(values: Sequence[bytes | None], width: int, tasks: int, before: Sequence[float]) -> tuple[Knowledge, int]:
    """What of these values is a record computed earlier than `before`, and how many were garbage.

    A record computed at the impression or later is a miss: its teacher may have seen what came of it."""
    found, garbage = nothing(len(values), width, tasks), 0
    size = HEAD.size + 2 * width + 4 * tasks
    for row, value in enumerate(values):
        if value is None:
            continue
        if len(value) != size + TAIL.size or zlib.crc32(value[:size]) != TAIL.unpack_from(value, size)[0]:
            garbage += 1
            continue
        magic, version, its_width, its_tasks, computed = HEAD.unpack_from(value)
        embedding = np.frombuffer(value, "<f2", width, HEAD.size).astype(np.float32)
        logits = np.frombuffer(value, "<f4", tasks, HEAD.size + 2 * width).copy()
        known = (magic, version, its_width, its_tasks) == (MAGIC, VERSION, width, tasks)
        if not known or not np.isfinite(embedding).all() or not np.isfinite(logits).all():
            garbage += 1
        elif computed < before[row]:
            found.embedding[row] = torch.from_numpy(embedding)
            found.logits[row] = torch.from_numpy(logits)
            found.hit[row] = True
    return found, garbage
