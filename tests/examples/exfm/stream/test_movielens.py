"""MovieLens as a stream: nothing is known before it arrived, and verticals share examples."""

import numpy as np
import pytest

from examples import movielens
from examples.exfm.stream.delays import Delays
from examples.exfm.stream.events import IMPRESSION, LABEL, concat
from examples.exfm.stream.log import Log
from examples.exfm.stream.movielens import VERTICALS, known, read, record


@pytest.fixture(scope="module")
def found():
    return read(Delays(), days=12)


def test_every_rating_is_shown_to_its_verticals_and_told_once(found):
    schema, events = found
    shown, told = events.take(events.kind == IMPRESSION), events.take(events.kind == LABEL)
    assert len(told) == len(set(told.id.tolist())) == len(set(shown.id.tolist())) > 5000
    everything = schema.vertical("all")
    assert (shown.vertical == everything).sum() == len(told)
    assert len(shown) > 2 * len(told)  # films have several genres
    drama = shown.take(shown.vertical == schema.vertical("drama"))
    assert 0.3 < len(drama) / len(told) < 0.6
    ratings = movielens.ratings_by_time()
    for row in (0, 99, 3000):
        here = told.take(told.id == row)
        assert here.label[0] == (float(ratings[row]["rating"]) >= 4)
        assert 0 < here.time[0] - float(ratings[row]["timestamp"]) <= 48 * 3600
    assert schema.verticals == tuple(VERTICALS)
    assert (events.ids.max(0) < schema.cardinalities).all() and events.bag.max() < schema.bag


def test_the_past_is_what_had_arrived():
    ratings = [{"user_id": user, "item_id": item} for user, item in ("ax", "ay", "bx", "ax", "ax")]
    time = np.array([0, 10, 20, 30, 30])
    label = np.array([1, 0, 1, 1, 1], np.float32)
    told = np.array([15, 30, -1, 31, 32])  # the second arrives in the very second of the last two: not yet known
    past = known(ratings, time, label, told)
    assert past == [((0, 0), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (1, 1)), ((1, 1), (1, 1)), ((1, 1), (1, 1))]
    assert known(ratings, np.array([0, 10, 20, 40, 50]), label, told)[4] == ((3, 2), (2, 2))


def test_the_log_on_disk_is_the_stream(found, tmp_path):
    schema, events = found
    assert record(tmp_path, days=12) == len(events)
    log = Log(tmp_path)
    read_again = concat([part for part, _ in log.chunks()])
    assert (
        log.schema == schema and np.array_equal(read_again.id, events.id) and np.array_equal(read_again.ids, events.ids)
    )
