"""The same interface over Kafka, for who has a broker. Needs `confluent-kafka`, which loka does not install.

One message is one chunk, as an Arrow stream (never pickle), so what is read from an offset on is the same every time,
and a checkpoint's position is {"partition 0": offset}: the broker's own committed offsets are not used. One partition:
two have no order between them, and a run over them could not be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from examples.exfm.counters import Counters
from examples.exfm.errors import ExfmError
from examples.exfm.stream.events import Events, Schema
from examples.exfm.stream.log import Position, as_said

PARTITION = "partition 0"


@dataclass
class Kafka:
    """A topic. servers: `host:port,...`; seconds: how long to wait for a message; follow: wait for more at the end,
    rather than stop there."""

    servers: str
    topic: str
    schema: Schema
    seconds: float = 10.0
    follow: bool = False
    counters: Counters = field(default_factory=Counters)

    @property
    def origin(self) -> dict[str, Any]:
        return {"topic": self.topic}

    def chunks(self, position: Position | None = None) -> Iterator[tuple[Events, Position]]:
        kafka = _library()
        offset = position[PARTITION] if position else 0
        consumer = kafka.Consumer({"bootstrap.servers": self.servers, "group.id": "exfm", "enable.auto.commit": False})
        try:
            begin, end = self._offsets(kafka, consumer)
            if position and not begin <= offset <= end:
                raise ExfmError(f"{self.topic} has offsets {begin} to {end}, not {offset}: was it made anew?")
            offset = max(offset, begin)
            consumer.assign([kafka.TopicPartition(self.topic, 0, offset)])
            while self.follow or offset < end:
                message = consumer.poll(self.seconds)
                if message is None:
                    if self.follow:
                        continue
                    raise ExfmError(f"{self.servers} gave no message of {self.topic} in {self.seconds:g} s; is it up?")
                if message.error():
                    raise ExfmError(f"{self.topic}: {message.error().str()}")
                offset = message.offset() + 1
                try:
                    events = as_said(unpacked(message.value()), self.schema)
                except Exception as error:  # a tombstone, damage, another schema's
                    self.counters.add("corrupt_group", words=f"{self.topic}, offset {offset - 1}: {error}")
                    continue
                if len(events):
                    yield events, {PARTITION: offset}
        finally:
            consumer.close()

    def publish(self, chunks: Iterable[Events]) -> int:
        """Send chunks, each as a message; how many. Returns when the broker has them all."""
        producer = _library().Producer({"bootstrap.servers": self.servers, "enable.idempotence": True})
        return send(producer, self.topic, chunks)

    def _offsets(self, kafka: Any, consumer: Any) -> tuple[int, int]:
        """Of the first message that is still there, and behind the last."""
        try:
            begin, end = consumer.get_watermark_offsets(kafka.TopicPartition(self.topic, 0), self.seconds)
            return int(begin), int(end)
        except kafka.KafkaException as error:
            raise ExfmError(f"{self.servers} does not answer for {self.topic}: {error}") from None


def send(producer: Any, topic: str, chunks: Iterable[Events], seconds: float = 60.0) -> int:
    """Send chunks through a producer."""
    failed: list[str] = []

    def delivered(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(str(error))

    count = 0
    for events in chunks:
        producer.produce(topic, packed(events), partition=0, on_delivery=delivered)
        producer.poll(0)
        count += 1
    left = producer.flush(seconds)
    if left or failed:
        raise ExfmError(
            f"the broker did not take {left + len(failed)} of {count} messages: {(failed or ['no answer'])[0]}"
        )
    return count


def packed(events: Events) -> bytes:
    """As an Arrow stream."""
    table = events.to_table()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(message: bytes) -> Events:
    """Raises ExfmError, or Arrow's own error, for what is no chunk."""
    with pa.ipc.open_stream(message) as reader:
        return Events.from_table(reader.read_all())


def _library() -> Any:
    try:
        import confluent_kafka
    except ImportError:
        raise ExfmError("Kafka needs a client: pip install confluent-kafka") from None
    return confluent_kafka
