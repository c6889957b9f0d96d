"""The store on Redis, over redis-py (extra `lattice`)."""

from __future__ import annotations

from collections.abc import Sequence

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from examples.lattice.ktap.store import StoreError, check

CHUNK = 1000  # keys a call


class OnRedis:
    """url: as redis://host:6379/0. seconds: that one call to the server may take. Nothing is tried twice: who reads
    must not wait, and who writes tries again with the next batch. A connection that broke is made anew by the next
    call."""

    def __init__(self, url: str, seconds: float = 0.5) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0)
        )

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> None:
        check(keys, values, ttl)
        try:
            for start in range(0, len(keys), CHUNK):
                pipeline = self._client.pipeline(transaction=False)
                for key, value in zip(keys[start : start + CHUNK], values[start : start + CHUNK], strict=True):
                    pipeline.set(key, value, px=max(1, round(ttl * 1000)))
                pipeline.execute()
        except redis.RedisError as error:
            raise StoreError(f"Redis did not take {len(keys)} values: {error}") from error

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        try:
            for start in range(0, len(keys), CHUNK):
                found += self._client.mget(keys[start : start + CHUNK])
        except redis.RedisError as error:
            raise StoreError(f"Redis did not answer for {len(keys)} keys: {error}") from error
        return found

    def close(self) -> None:
        self._client.close()
