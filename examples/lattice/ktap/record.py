"""What the teacher writes for a (user, item) pair, as bytes that check themselves.

Layout, little-endian: `KTAP`, version of this layout, width and tasks (u16 each), version of the teacher (u64), when it
was computed (f64, seconds), the embedding (f16), the logits (f32), CRC-32 of the record's key and all before. Bytes
that are anything else, or that lie under another pair's key, are no record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from examples.lattice.ktap.store import UNANSWERED

MAGIC, VERSION = b"KTAP", 2
FIELDS = [
    ("magic", "S4"),
    ("layout", "<u2"),
    ("width", "<u2"),
    ("tasks", "<u2"),
    ("teacher", "<u8"),
    ("computed", "<f8"),
]
HEAD, TAIL = np.dtype(FIELDS), 4  # bytes of the checksum
SMALLEST = HEAD.itemsize + TAIL
WHOLE = 0x2144DF1C  # the CRC-32 of anything that ends in its own CRC-32, little-endian
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
        whole = isinstance(self.version, int) and not isinstance(self.version, bool)  # a record would cut 2.1 to 2
        if not (isinstance(self.name, str) and self.name and whole and 0 <= self.version < 2**64):
            raise ValueError(
                f"a teacher has a name and a version, a whole number from 0 to 2^64 - 1; got {self.name!r} and "
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
    """Why pairs were misses.

    absent      the store answered that there is nothing
    garbage     it gave something that is no record of this pair, or no bytes
    other       it gave the record of another version of the teacher
    late        it gave one computed at the impression or later, whose teacher may have seen what came of it
    unanswered  it did not answer, as far as a guard waited: what it holds is not known
    """

    absent: int = 0
    garbage: int = 0
    other: int = 0
    late: int = 0
    unanswered: int = 0


def nothing(count: int, width: int, tasks: int) -> Knowledge:
    """B misses."""
    return Knowledge(torch.zeros(count, width), torch.zeros(count, tasks), torch.zeros(count, dtype=torch.bool))


@cache
def layout(width: int, tasks: int) -> np.dtype:
    """A whole record."""
    return np.dtype([*FIELDS, ("embedding", "<f2", (width,)), ("logits", "<f4", (tasks,)), ("checksum", "<u4")])


def key(user: int, item: int, teacher: TeacherId) -> bytes:
    """Where a pair's record lies. Users and items are whole numbers: of texts two pairs could have one key."""
    try:
        return f"ktap:{teacher.name}:{user:d}:{item:d}".encode()
    except (ValueError, TypeError):
        raise TypeError(f"users and items are whole numbers, got {user!r} and {item!r}: number them first") from None


def encode(
    keys: Sequence[bytes], embedding: Tensor, logits: Tensor, computed: Sequence[float], teacher: TeacherId
) -> list[bytes]:
    """One record a key of embedding (B, width) and logits (B, tasks), computed when. Numbers beyond float16 are cut."""
    half = embedding.detach().float().clamp(-LARGEST, LARGEST).cpu().numpy()
    full = logits.detach().float().cpu().numpy()
    if not len(keys) == len(half) == len(full) == len(computed):
        counts = f"{len(keys)} keys, {len(half)} embeddings, {len(full)} rows of logits and {len(computed)} times"
        raise ValueError(f"expected one of each a record, got {counts}")
    rows = np.zeros(len(keys), layout(half.shape[1], full.shape[1]))
    rows["magic"], rows["layout"], rows["teacher"] = MAGIC, VERSION, teacher.version
    rows["width"], rows["tasks"] = half.shape[1], full.shape[1]
    rows["computed"], rows["embedding"], rows["logits"] = computed, half, full
    joined, size = rows.tobytes(), rows.itemsize
    bodies = [joined[start : start + size - TAIL] for start in range(0, len(joined), size)]
    return [body + crc32(body, crc32(key)).to_bytes(TAIL, "little") for key, body in zip(keys, bodies, strict=True)]


def decode(
    keys: Sequence[bytes],
    values: Sequence[object],
    width: int,
    tasks: int,
    before: Sequence[float],
    teacher: TeacherId,
) -> tuple[Knowledge, Misses]:
    """What of the values under these keys, as a store or a guard answered, is this teacher's and was computed earlier
    than `before`; why the rest is not. Python looks at each record's checksum, numpy at all the rest, of all records
    at once."""
    if not len(keys) == len(values) == len(before):
        raise ValueError(f"expected one value and one time a key, got {len(values)} and {len(before)} for {len(keys)}")
    found = nothing(len(keys), width, tasks)
    whole = [
        row
        for row, (key, value) in enumerate(zip(keys, values, strict=True))
        if isinstance(value, bytes) and len(value) >= SMALLEST and crc32(value, crc32(key)) == WHOLE
    ]
    head = np.frombuffer(b"".join([values[row][: HEAD.itemsize] for row in whole]), HEAD)
    known = (head["magic"] == MAGIC) & (head["layout"] == VERSION)
    own = known & (head["teacher"] == np.uint64(teacher.version))
    fitting = (own & (head["width"] == width) & (head["tasks"] == tasks)).tolist()
    size = layout(width, tasks).itemsize
    fit = [row for row, fits in zip(whole, fitting, strict=True) if fits and len(values[row]) == size]
    rows, records = np.array(fit, np.int64), np.frombuffer(b"".join([values[row] for row in fit]), layout(width, tasks))
    embedding, logits, computed = records["embedding"].astype(np.float32), records["logits"], records["computed"]
    finite = np.isfinite(embedding).all(axis=1) & np.isfinite(logits).all(axis=1) & np.isfinite(computed)
    early = finite & (computed < np.asarray(before, np.float64)[rows])
    hits = torch.from_numpy(rows[early])
    found.embedding[hits] = torch.from_numpy(embedding[early])
    found.logits[hits] = torch.from_numpy(logits[early].astype(np.float32))
    found.hit[hits] = True
    absent, unanswered = (sum(value is what for value in values) for what in (None, UNANSWERED))
    other, late = int((known & ~own).sum()), int((finite & ~early).sum())
    garbage = len(keys) - absent - unanswered - other - late - len(hits)
    return found, Misses(absent, garbage, other, late, unanswered)
