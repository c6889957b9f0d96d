"""What is wrong with a chunk is put right or left out, counted and named, before anything is computed from it."""

from __future__ import annotations

import numpy as np

from examples.exfm.counters import Counters
from examples.exfm.stream.events import IMPRESSION, LABEL, Events, Schema


def clean(events: Events, schema: Schema, counters: Counters, now: int, tolerance: int) -> Events:
    """The events that can be used.

    now: `logged` of the last event before. tolerance: seconds that a sender's clock may be ahead of the log.

    log_disorder    `logged` went back: it stays where it was
    clock_ahead     `time` is ahead of `logged` by more than that. It is `logged` then, as whenever it is ahead: nothing
                    is logged before it happens
    unknown_kind, unknown_vertical, bad_label (NaN, or outside of 0 to 1)    left out
    unknown_id      an id of no row of a table: 0, unknown
    """
    if not len(events):
        return events
    logged = np.maximum.accumulate(np.maximum(events.logged, now))
    _say(counters, "log_disorder", events, logged != events.logged)
    ahead = events.time > logged + tolerance
    _say(counters, "clock_ahead", events, ahead)
    time = np.minimum(events.time, logged)

    shown, told = events.kind == IMPRESSION, events.kind == LABEL
    strange = ~(shown | told)
    lost = shown & ((events.vertical < 0) | (events.vertical >= len(schema.verticals)))
    wrong = told & ~((events.label >= 0) & (events.label <= 1))
    for name, rows in (("unknown_kind", strange), ("unknown_vertical", lost), ("bad_label", wrong)):
        _say(counters, name, events, rows)

    sizes = np.asarray(schema.cardinalities, np.int32)
    outside = (events.ids < 0) | (events.ids >= sizes)
    outside_bag = (events.bag < 0) | (events.bag >= _below(schema))
    _say(counters, "unknown_id", events, outside.any(1) | outside_bag.any(1))
    ids = np.where(outside, 0, events.ids) if outside.any() else events.ids
    bag = np.where(outside_bag, 0, events.bag) if outside_bag.any() else events.bag

    right = Events(events.kind, events.id, logged, time, events.vertical, events.label, ids, bag)
    kept = ~(strange | lost | wrong)
    return right if kept.all() else right.take(kept)


def _below(schema: Schema) -> np.ndarray:
    """What the values of every place of a bag and of the history behind it are below."""
    return np.repeat(np.array([schema.bag, schema.kinds_of_event], np.int32), [schema.most, schema.history])


def _say(counters: Counters, name: str, events: Events, rows: np.ndarray) -> None:
    count = int(rows.sum())
    if count:
        counters.add(name, count, f"{count} from example {int(events.id[rows.argmax()])} on")
