"""One set of tests for both stores: a dictionary with a clock, and a real Redis server."""

from __future__ import annotations

import time

import pytest

from examples.lattice.ktap.store import LONGEST, SHORTEST, InProcess, StoreError


class Timed:
    """A store, and how to let time pass for it."""

    def __init__(self, store, wait):
        self.store, self.wait = store, wait


@pytest.fixture(params=["in process", pytest.param("redis", marks=pytest.mark.redis)])
def timed(request):
    if request.param == "in process":
        now = [100.0]
        yield Timed(InProcess(clock=lambda: now[0]), lambda seconds: now.__setitem__(0, now[0] + seconds))
    else:
        server = request.getfixturevalue("redis_server")
        from examples.lattice.ktap.redis_store import OnRedis

        store = OnRedis(server.url, seconds=30)
        store._client.flushdb()
        yield Timed(store, time.sleep)
        store.close()


def test_values_come_back_in_the_order_asked_for_and_misses_are_none(timed):
    assert timed.store.put([b"a", b"b"], [b"1", b"\x00\xff"], 60) == 2
    assert timed.store.get([b"b", b"nothing", b"a", b"b"]) == [b"\x00\xff", None, b"1", b"\x00\xff"]
    assert timed.store.get([]) == []
    assert timed.store.put([], [], 60) == 0


def test_a_value_is_gone_when_its_time_is_over(timed):
    timed.store.put([b"long"], [b"1"], 60)
    timed.store.put([b"short"], [b"2"], 0.4)
    timed.wait(0.05)
    assert timed.store.get([b"long"]) == [b"1"]
    timed.wait(0.6)
    assert timed.store.get([b"long", b"short"]) == [b"1", None]


def test_writing_again_replaces_value_and_time(timed):
    timed.store.put([b"a"], [b"1"], 0.4)
    timed.store.put([b"a"], [b"2"], 60)
    timed.wait(0.6)
    assert timed.store.get([b"a"]) == [b"2"]


def test_more_keys_than_one_call_takes(timed):
    keys = [str(i).encode() for i in range(2500)]
    timed.store.put(keys, keys, 60)
    assert timed.store.get(keys[::-1]) == keys[::-1]


def test_what_cannot_be_written_is_refused(timed):
    with pytest.raises(ValueError, match="got 2 keys and 1 values"):
        timed.store.put([b"a", b"b"], [b"1"], 60)
    for ttl in (0, -1.0, 1e-6, float("inf"), float("nan"), 1e20):
        with pytest.raises(ValueError, match=r"from 0.001 to .* seconds .ten years., got"):
            timed.store.put([b"a"], [b"1"], ttl)
    for keys, values in (["a"], [b"1"]), ([b"a"], ["1"]), ([b"a"], [1]), ([b"a"], [bytearray(b"1")]):
        with pytest.raises(TypeError, match="are bytes, got"):
            timed.store.put(keys, values, 60)
    with pytest.raises(TypeError, match="keys of a store are bytes, got str"):
        timed.store.get(["a"])
    assert timed.store.get([b"a"]) == [None]


@pytest.mark.parametrize("ttl", [SHORTEST, LONGEST])
def test_the_shortest_and_the_longest_time_are_taken(timed, ttl):
    timed.store.put([b"a"], [b"1"], ttl)
    timed.wait(0.1)
    assert timed.store.get([b"a"]) == [b"1" if ttl == LONGEST else None]


def test_the_oldest_written_go_first_when_it_is_full():
    store = InProcess(capacity=2)
    for key in (b"a", b"b", b"a", b"c"):
        store.put([key], [key], 60)
    assert store.get([b"a", b"b", b"c"]) == [b"a", None, b"c"] and len(store) == 2
    with pytest.raises(ValueError, match="at least 1"):
        InProcess(capacity=0)


def test_a_server_that_is_not_there_is_a_store_error():
    pytest.importorskip("redis")
    from examples.lattice.ktap.redis_store import OnRedis

    store = OnRedis("redis://127.0.0.1:1/0", seconds=0.5)
    with pytest.raises(StoreError, match="did not answer for 1 keys"):
        store.get([b"a"])
    with pytest.raises(StoreError, match="did not take 1 values"):
        store.put([b"a"], [b"1"], 1)


@pytest.mark.parametrize("option", ["decode_responses=True", "socket_timeout=60", "db=0&socket_connect_timeout="])
def test_what_the_url_must_not_say_is_refused(option):
    pytest.importorskip("redis")
    from examples.lattice.ktap.redis_store import OnRedis

    with pytest.raises(ValueError, match=r"leave (decode|socket).* out of the URL"):
        OnRedis(f"redis://127.0.0.1:1/0?{option}")


@pytest.mark.redis
def test_what_redis_says_is_short_and_holds_no_record(tmp_path):
    pytest.importorskip("redis")
    from examples.lattice.ktap.redis_store import OnRedis
    from tests.examples.lattice.ktap.servers import Server

    server = Server(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    store = OnRedis(server.url, seconds=30)
    try:
        with pytest.raises(StoreError, match=r"did not take 3 values of 3: .*maxmemory") as caught:
            store.put([b"a", b"b", b"c"], [b"secret\x00\xff" * 5] * 3, 600)
        assert len(str(caught.value)) < 300 and "secret" not in str(caught.value)
    finally:
        store.close()
        server.kill()


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_a_redis_that_could_not_be_asked_or_would_be_waited_for_for_ever_is_refused(seconds):
    pytest.importorskip("redis")
    from examples.lattice.ktap.redis_store import OnRedis

    with pytest.raises(ValueError, match="more than 0 seconds and not for ever, got"):
        OnRedis("redis://localhost:1/0", seconds=seconds)
