"""The store on Redis, over redis-py (extra `lattice`)."""

from __future__ import annotations

from collections.abc import Sequence
from threading import TIMEOUT_MAX
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from examples.lattice.ktap.store import StoreError, check, check_bytes

CHUNK = 1000  # keys a call
SAID = 200  # characters of what the server says
OURS = {
    "decode_responses": "records are bytes, no text",
    "socket_timeout": "give OnRedis(url, seconds=...)",
    "socket_connect_timeout": "give OnRedis(url, seconds=...)",
}


class OnRedis:
    """url: as redis://host:6379/0. seconds: that one call to the server may take. Nothing is tried twice: who reads
    must not wait, and who writes tries again with the next batch. A connection that broke is made anew by the next
    call."""

    def __init__(self, url: str, seconds: float = 0.5) -> None:
        if not 0 < seconds <= TIMEOUT_MAX:  # nan is neither
            raise ValueError(f"a call to Redis may take more than 0 seconds and not for ever, got {seconds}")
        for option in parse_qs(urlsplit(url).query, keep_blank_values=True):
            if option in OURS:  # redis-py takes it from the URL before it takes it from us
                raise ValueError(f"leave {option} out of the URL of this store: {OURS[option]}")
        self._client = redis.Redis.from_url(
            url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0)
        )

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        check(keys, values, ttl)
        said: list[object] = []
        try:
            for start in range(0, len(keys), CHUNK):
                pipeline = self._client.pipeline(transaction=False)
                for key, value in zip(keys[start : start + CHUNK], values[start : start + CHUNK], strict=True):
                    pipeline.set(key, value, px=round(ttl * 1000))
                said += pipeline.execute(raise_on_error=False)  # the error it would raise holds the record's bytes
        except redis.RedisError as error:
            raise StoreError(f"Redis did not take {len(keys) - len(said)} values: {short(error)}") from error
        refused = [each for each in said if isinstance(each, Exception)]
        if refused:
            raise StoreError(f"Redis did not take {len(refused)} values of {len(keys)}: {short(refused[0])}")
        return len(keys)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        check_bytes("keys", keys)
        found: list[bytes | None] = []
        try:
            for start in range(0, len(keys), CHUNK):
                found += self._client.mget(keys[start : start + CHUNK])
        except redis.RedisError as error:
            raise StoreError(f"Redis did not answer for {len(keys)} keys: {short(error)}") from error
        return found

    def close(self) -> None:
        self._client.close()


def short(error: Exception) -> str:
    """What went wrong, for a log."""
    said = str(error) or type(error).__name__
    return said if len(said) <= SAID else f"{said[:SAID]}..."
