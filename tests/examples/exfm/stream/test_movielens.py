"""MovieLens as a stream: nothing is known before it arrived, and verticals share examples."""

import numpy as np
import pytest

from examples import movielens
from examples.exfm.stream.delays import Delays
from examples.exfm.stream.events import IMPRESSION, LABEL, concat, event
from examples.exfm.stream.log import Log
from examples.exfm.stream.movielens import VERTICALS, histories, known, read, record


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


def test_a_history_is_what_had_begun_and_the_labels_that_had_arrived():
    users, items = list("aabaaa"), np.array([1, 2, 3, 4, 5, 6])
    time = np.array([0, 10, 20, 30, 30, 40])
    label = np.array([1, 0, 1, 1, 1, 1], np.float32)
    told = np.array([15, 30, -1, 31, -1, 41])  # of rating 1 in the second in which 3 and 4 begin: not yet known
    found = histories(users, items, time, label, told, 3)
    assert found.tolist() == [
        [0, 0, 0],
        [event(1, 0), 0, 0],
        [0, 0, 0],
        [event(2, 0), event(1, 2), 0],
        [event(2, 0), event(1, 2), 0],
        [event(5, 0), event(4, 2), event(2, 1)],
    ]
    assert histories(users, items, time, label, told, 0).shape == (6, 0)


def test_with_histories_the_rest_stays_as_it_was(found):
    schema, events = found
    with_past, again = read(Delays(), days=12, history=4)
    assert with_past.history == 4 and with_past.places == schema.most + 4
    assert np.array_equal(again.ids, events.ids) and np.array_equal(again.bag[:, : schema.most], events.bag)
    past = again.bag[:, schema.most :]
    assert (past.max() < with_past.kinds_of_event) and (past > 0).mean() > 0.3
    assert (past[again.kind == LABEL] == 0).all()


def test_the_log_on_disk_is_the_stream(found, tmp_path):
    schema, events = found
    assert record(tmp_path, days=12) == len(events)
    log = Log(tmp_path)
    read_again = concat([part for part, _ in log.chunks()])
    assert (
        log.schema == schema and np.array_equal(read_again.id, events.id) and np.array_equal(read_again.ids, events.ids)
    )
