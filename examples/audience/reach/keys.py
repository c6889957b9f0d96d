"""A number between 0 and 2^64 for every row or user, the same whenever it is asked: who has a small one is sampled.

Permanent random numbers (Ohlsson 1995): tomorrow's sample keeps most of today's rows, as their numbers stay.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def splitmix(x: Keys) -> Keys:
    """A bijection of 64-bit numbers whose outputs look drawn (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def of_rows(file: str, first: int, count: int, seed: int) -> Keys:
    """Keys of rows first .. first + count of a file that is named by its checksum."""
    start = int.from_bytes(hashlib.blake2b(f"{seed}:{file}".encode(), digest_size=8).digest(), "little")
    return splitmix(np.uint64(start) ^ splitmix(np.arange(first, first + count, dtype=np.uint64)))


def of_users(users: pa.ChunkedArray, seed: int) -> tuple[Keys, Keys]:
    """Keys of the users of some rows, [N], and a number that names each user, the same in every file."""
    coded = pc.dictionary_encode(users).combine_chunks()
    names = [f"{type(name).__name__}:{name}" for name in coded.dictionary.to_pylist()]
    hashed = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    numbers = np.frombuffer(b"".join(hashed), np.uint64)
    if coded.null_count:
        raise ValueError(f"{coded.null_count} rows have no user")
    own = numbers[coded.indices.to_numpy()]
    return splitmix(own ^ splitmix(np.array([seed], np.uint64))), own


def checksum(path: Path) -> str:
    """Of a whole file, 16 bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
