"""Kafka's interface is the log's. The broker is librdkafka's own mock cluster: its protocol on a real socket; a broker
proper needs Java and is in no registry that pip reads."""

import os
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from examples.exfm.errors import ExfmError
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.kafka import PARTITION, Kafka, packed, send, unpacked
from tests.examples.exfm.stream.test_events import same

DRIFT = Drift(hours=3, rate=30)


def test_a_message_is_a_chunk_and_no_pickle():
    [first, *_] = DRIFT.events()
    assert same(unpacked(packed(first)), first)
    with pytest.raises((pa.ArrowException, ExfmError)):
        unpacked(b"no")


def test_without_a_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ExfmError, match="pip install confluent-kafka"):
        next(iter(Kafka("localhost:1", "t", DRIFT.schema).chunks()))


@pytest.fixture
def broker():
    if os.environ.get("CI") != "true":  # there it has to be installed
        pytest.importorskip("confluent_kafka")
    import confluent_kafka as kafka

    producer = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none", "log_level": 0})
    [address] = producer.list_topics(timeout=10).brokers.values()
    yield producer, f"{address.host}:{address.port}"
    producer.flush(5)


def test_positions_are_offsets_and_damage_is_counted(broker):
    producer, address = broker
    chunks = list(DRIFT.events())
    assert send(producer, "events", chunks[:2]) == 2
    producer.produce("events", b"no chunk", partition=0)
    assert send(producer, "events", chunks[2:]) == len(chunks) - 2
    source = Kafka(address, "events", DRIFT.schema)
    found = list(source.chunks())
    assert len(found) == len(chunks) and all(same(a, b) for (a, _), b in zip(found, chunks, strict=True))
    assert [position[PARTITION] for _, position in found[:3]] == [1, 2, 4]
    assert source.counters.counts == {"corrupt_group": 1} and "offset 2" in source.counters.named[0]
    rest = list(source.chunks(found[1][1]))
    assert [position for _, position in rest] == [position for _, position in found[2:]]
    assert np.array_equal(rest[0][0].id, chunks[2].id)


def test_what_is_no_chunk_of_this_log_is_counted_and_an_offset_of_another_topic_is_an_error(broker):
    producer, address = broker
    [first, second, *_] = DRIFT.events()
    wider = replace(second, bag=np.hstack([second.bag, second.bag]))
    assert send(producer, "mixed", [first, first.take(slice(0, 0)), wider, second]) == 4
    producer.produce("mixed", None, key=b"a tombstone", partition=0)
    producer.flush(10)
    source = Kafka(address, "mixed", DRIFT.schema)
    found = list(source.chunks())
    assert [position[PARTITION] for _, position in found] == [1, 4] and same(found[1][0], second)
    assert source.counters.counts == {"corrupt_group": 2}
    with pytest.raises(ExfmError, match="mixed has offsets 0 to 5, not 100: was it made anew"):
        next(iter(source.chunks({PARTITION: 100})))
