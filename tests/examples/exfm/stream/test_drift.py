"""The dials do what they say, and the same seed gives the same stream from any hour on."""

from dataclasses import replace

import numpy as np
import pytest

from examples.exfm.stream.delays import Delays
from examples.exfm.stream.drift import START, Drift
from examples.exfm.stream.events import IMPRESSION, LABEL, STATES, concat

HOUR = 3600


@pytest.fixture(scope="module")
def whole():
    return concat(list(Drift(hours=30, rate=300).events()))


def test_every_example_has_one_label_in_its_time(whole):
    told = whole.take(whole.kind == LABEL)
    shown = whole.take(whole.kind == IMPRESSION)
    assert len(told) == 30 * 300 and len(set(told.id.tolist())) == len(told)
    began = dict(zip(shown.id.tolist(), shown.time.tolist(), strict=True))
    delay = np.array([told.time[i] - began[key] for i, key in enumerate(told.id.tolist())])
    assert delay.min() >= 1 and delay.max() <= 26 * HOUR
    assert (delay <= HOUR).mean() == pytest.approx(0.35, abs=0.02)
    assert (delay <= 24 * HOUR).mean() == pytest.approx(0.5, abs=0.02)
    assert (np.diff(whole.logged) >= 0).all()


def test_verticals_overlap_by_the_dial(whole):
    shown = whole.take(whole.kind == IMPRESSION)
    pairs = set(zip(shown.id.tolist(), shown.vertical.tolist(), strict=True))
    assert len(pairs) == len(shown)
    assert len(shown) / (30 * 300) == pytest.approx(1.5, abs=0.03)
    alone = concat(list(Drift(hours=2, overlap=0.0).events()))
    assert (alone.kind == IMPRESSION).sum() == (alone.kind == LABEL).sum() == 400


def test_the_same_seed_is_the_same_stream():
    a, b, c = (Drift(hours=5, seed=seed) for seed in (3, 3, 4))
    for x, y in zip(a.examples(4), b.examples(4), strict=True):
        assert np.array_equal(x, y)
    assert not np.array_equal(a.examples(4)[2], c.examples(4)[2])


def test_new_users_and_items_come_and_tastes_turn():
    drift = Drift(hours=200, turn=0.3)
    first, last = drift.examples(0)[2], drift.examples(199)[2]
    assert not set(first[:, 0].tolist()) & set(last[:, 0].tolist()) and (last[:, 0] > 3900).all()
    assert last.max(0)[[0, 2]].tolist() < list(drift.schema.cardinalities)[::2]
    ids, bag = drift.examples(0)[2:4]
    now, then = (drift.probability(ids, bag, np.full(len(ids), START + days * 24 * HOUR)) for days in (0, 7))
    still = Drift(hours=200, turn=0.0)
    assert np.abs(now - then).mean() > 0.05  # a week later the base rate is the same, the tastes are not
    again = [still.probability(ids, bag, np.full(len(ids), START + days * 24 * HOUR)) for days in (0, 7)]
    assert np.allclose(*again)


def test_labels_are_drawn_from_what_is_true():
    drift = Drift(hours=40, rate=500)
    parts = [drift.examples(hour) for hour in range(40)]
    truth = np.concatenate([drift.probability(part[2], part[3], part[1]) for part in parts])
    label = np.concatenate([part[4] for part in parts])
    for low in np.arange(0, 1, 0.2):
        rows = (truth >= low) & (truth < low + 0.2)
        assert label[rows].mean() == pytest.approx(truth[rows].mean(), abs=4 * 0.5 / rows.sum() ** 0.5)


def test_labels_that_never_come():
    drift = Drift(hours=10, rate=300, delays=Delays(lost=0.2))
    events = concat(list(drift.events()))
    assert (events.kind == LABEL).sum() / 3000 == pytest.approx(0.8, abs=0.03)


def test_histories_hold_what_a_user_did_before_and_the_labels_that_had_come():
    drift = Drift(hours=12, rate=100, users=30, new_users=3, history=4, delays=Delays(most=2 * HOUR))
    events, plain = concat(list(drift.events())), concat(list(replace(drift, history=0).events()))
    most = plain.bag.shape[1]
    assert np.array_equal(events.bag[:, :most], plain.bag) and np.array_equal(events.id, plain.id)
    shown, told = events.take(events.kind == IMPRESSION), events.take(events.kind == LABEL)
    label = {
        id: (time, int(y)) for id, time, y in zip(*(a.tolist() for a in (told.id, told.time, told.label)), strict=True)
    }
    first = shown.take(np.unique(shown.id, return_index=True)[1])
    order = np.lexsort((first.id, first.time))
    users, items, times, ids = first.ids[:, 0], first.ids[:, 2], first.time, first.id
    known = 0
    for row in order.tolist()[400:600]:
        earlier = [r for r in order.tolist() if users[r] == users[row] and times[r] < times[row]][::-1][:4]
        wanted = []
        for r in earlier:
            when, y = label[int(ids[r])]
            wanted.append(int(items[r]) * STATES + (1 + y if when < times[row] else 0))
            known += when < times[row]
        assert first.bag[row, most:].tolist() == wanted + [0] * (4 - len(wanted))
    assert known > 100


def test_a_taste_of_ones_own_moves_labels_by_the_user_alone():
    drift = Drift(own=2.0, swing=0.0, turn=0.0)
    ids = np.tile(np.array([[0, 3, 5, 6, 1]]), (100, 1))
    ids[:, 0] = 12 * np.arange(100)  # of one segment
    bag, time = np.zeros((100, 3), np.int64), np.full(100, START)
    with_own, without = drift.probability(ids, bag, time), replace(drift, own=0.0).probability(ids, bag, time)
    change = np.log(with_own / (1 - with_own)) - np.log(without / (1 - without))
    assert np.allclose(change, np.tile(change[:12], 9)[:100]) and change[:12].std() > 0.5
