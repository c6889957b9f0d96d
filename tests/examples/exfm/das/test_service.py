"""DAS: every labelled example comes out once for each of its verticals, with the score that its teacher gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.exfm.das.rows import joined
from examples.exfm.das.scorers import Local, Scorer
from examples.exfm.stream.delays import Delays
from examples.exfm.stream.drift import START
from examples.exfm.stream.events import IMPRESSION, LABEL, concat, impressions, in_order, labels
from tests.examples.exfm.world import DRIFT, HOUR, Faulty, das, publish, teacher, through


@pytest.fixture(scope="module")
def chunks():
    return list(DRIFT.events())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    publish(folder, [1, 2, 3])
    return folder


def seen(rows):
    """(example, vertical) pairs, in order."""
    return [(int(r), v) for r, bits in zip(rows.id, rows.verticals, strict=True) for v in range(3) if bits >> v & 1]


def expected(chunks):
    shown = concat(chunks)
    shown = shown.take(shown.kind == IMPRESSION)
    return sorted(zip(shown.id.tolist(), shown.vertical.tolist(), strict=True))


def test_every_example_comes_out_once_for_each_vertical_with_its_label_and_score(chunks, folder):
    service = das(folder)
    rows = joined(through(service, chunks))
    assert sorted(seen(rows)) == expected(chunks)
    told = concat(chunks)
    told = told.take(told.kind == LABEL)
    label, when = (dict(zip(told.id.tolist(), each.tolist(), strict=True)) for each in (told.label, told.logged))
    first = rows.take(rows.first)
    assert [label[int(id)] for id in first.id] == first.label.tolist()
    assert [when[int(id)] for id in first.id] == first.released.tolist() and (np.diff(rows.released) >= 0).all()
    with torch.no_grad():
        logit, embedding = teacher(3)(torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.bag).long())
    assert rows.scored.all() and np.allclose(rows.logit, logit.numpy(), atol=1e-5)
    assert np.allclose(rows.embedding, embedding.numpy(), atol=1e-2)
    assert np.allclose(rows.probability, logit.sigmoid().numpy(), atol=1e-6)
    assert set(rows.version.tolist()) == {3} and set(rows.trained_until.tolist()) == {START}
    assert (rows.scored_at >= rows.time).all()


def test_the_teacher_runs_once_an_example_however_many_verticals_log_it(chunks, folder):
    service = das(folder)
    rows = joined(through(service, chunks))
    counts = service.counters.counts
    assert len(seen(rows)) > 1.3 * counts["examples"]
    assert counts["teacher_calls"] == counts["examples"] == 480 and counts["sent"] == 480


def test_a_delayed_teacher_is_the_older_snapshot(chunks, folder):
    rows = joined(through(das(folder, delay=2 * HOUR), chunks))
    # Snapshots know the stream until two hours, one hour and no time before its begin.
    hour = (rows.scored_at - START) // HOUR
    assert all(version == min(1 + at, 3) for version, at in zip(rows.version, hour, strict=True))
    none = das(folder, delay=100 * HOUR)
    rows = joined(through(none, chunks))
    assert sorted(seen(rows)) == expected(chunks) and not rows.scored.any()
    assert none.counters["no_teacher"] == 480 and none.counters["rows_without_score"] == len(rows)


def test_chunks_do_not_matter_to_what_comes_out(chunks, folder):
    whole = concat(chunks)
    for size in (7, 100, 10_000):
        pieces = [whole.take(slice(i, i + size)) for i in range(0, len(whole), size)]
        rows = joined(through(das(folder), pieces))
        assert sorted(seen(rows)) == expected(chunks) and rows.scored.all()


def test_duplicates_are_left_out(chunks, folder):
    service = das(folder)
    doubled = [in_order([events, events]) for events in chunks]
    rows = joined(through(service, doubled))
    assert sorted(seen(rows)) == expected(chunks)
    counts = service.counters.counts
    assert counts["duplicate"] == len(expected(chunks)) and counts["duplicate_label"] == 480
    assert counts["teacher_calls"] == 480


def test_labels_before_their_examples_wait_for_them(chunks, folder):
    whole = concat(chunks)
    early = replace(whole, logged=np.where(whole.kind == LABEL, whole.logged[0] - 1, whole.logged))
    service = das(folder)
    rows = joined(through(service, [in_order([early])]))
    assert sorted(seen(rows)) == expected(chunks) and rows.scored.all()
    assert service.counters["label_first"] == 480
    few = das(folder, orphans=100)
    rows = joined(through(few, [in_order([early])]))
    assert few.counters["label_alone"] == 380 and rows.first.sum() == 100


def test_what_comes_too_late_is_counted(chunks, folder):
    """A label after the window finds no example; an example that is shown again after it is no new one."""
    service = das(folder, window=10 * HOUR)
    rows = joined(through(service, chunks))
    whole = concat(chunks)
    told = whole.take(whole.kind == LABEL)
    shown = whole.take(whole.kind == IMPRESSION)
    began = dict(zip(shown.id.tolist(), shown.time.tolist(), strict=True))
    late = sum(int(t) - began[int(id)] > 10 * HOUR for id, t in zip(told.id, told.logged, strict=True))
    assert 0 < late < 480 and rows.first.sum() == 480 - late
    assert service.counters["unlabelled"] == late
    again = whole.take(whole.kind == IMPRESSION)
    again = replace(again, logged=np.full(len(again), whole.logged[-1] + 1))
    service.push(again)
    assert not len(service.release()) and service.counters["late"] == len(again)
    assert service.counters["label_alone"] + len(service.orphans) == late


def test_labels_that_never_come(folder):
    drift = replace(DRIFT, hours=6, delays=Delays(most=HOUR, quick=1.0, day=1.0, lost=0.3))
    service = das(folder, drift, window=2 * HOUR)
    rows = joined(through(service, drift.events()))
    lost = sum(int((drift.examples(hour)[5] < 0).sum()) for hour in range(6))
    assert rows.first.sum() == 480 - lost and lost > 100
    assert service.counters["unlabelled"] + int(np.isnan(service.waiting.arrays()["label"]).sum()) == lost


@pytest.mark.parametrize("lag", [1, 3])
def test_scorers_that_lag_are_waited_for_in_a_replay(chunks, folder, lag):
    straight = joined(through(das(folder, batch=64), chunks))
    lagging = joined(through(das(folder, scorers=Faulty(folder, lag=lag), batch=64), chunks))
    for name, values in straight.arrays().items():
        assert np.array_equal(values, lagging.arrays()[name], equal_nan=True), name


def test_a_live_row_does_not_wait_longer_than_its_patience(chunks, folder):
    scorers = Faulty(folder, lost=range(10_000), limit=10_000)
    service = das(folder, scorers=scorers, batch=64, patience=0.0)
    rows = joined(through(service, chunks))
    assert sorted(seen(rows)) == expected(chunks) and not rows.scored.any()
    assert service.counters["score_missing"] == service.counters["rows_without_score"] == len(rows)


def test_scorers_that_are_full_hold_live_rows_up_no_longer_than_that_either(chunks, folder):
    service = das(folder, scorers=Faulty(folder, lost=range(10_000), limit=2), batch=16, patience=0.0)
    rows = joined(through(service, chunks))
    assert sorted(seen(rows)) == expected(chunks) and len(service.under_way) == 2


def test_a_scorer_that_dies_or_gives_no_numbers_costs_its_rows_their_scores_alone(chunks, folder):
    service = das(folder, scorers=Faulty(folder, failing={1}, wrong={2}), batch=64)
    rows = joined(through(service, chunks))
    assert sorted(seen(rows)) == expected(chunks)
    counts = service.counters.counts
    assert 0 < counts["scorer_failed"] <= 64 and 0 < counts["score_not_finite"] <= 33
    unscored = len(set(rows.id[~rows.scored].tolist()))
    assert unscored == counts["scorer_failed"] + counts["score_not_finite"]
    assert np.isfinite(rows.logit).all() and any("the scorer died" in words for words in service.counters.named)


def test_a_snapshot_that_is_damaged_costs_scores_until_it_is_rolled_back(chunks, tmp_path):
    snapshots = publish(tmp_path, [1, 2])
    (tmp_path / "teacher-000002.safetensors").write_bytes(b"no")
    service = das(tmp_path)
    half = len(chunks) // 6
    before = joined(through(service, chunks[:half]))
    assert service.counters["scorer_failed"] and not before.scored.any()
    snapshots.roll_back(1)
    after = joined(through(service, chunks[half:]))
    assert sorted(seen(joined([before, after]))) == expected(chunks)
    assert set(after.version[after.scored].tolist()) == {1}


def test_a_swapped_teacher_scores_what_comes_after(chunks, tmp_path):
    snapshots = publish(tmp_path, [1])
    service = das(tmp_path, batch=16)
    through(service, chunks[:3])
    snapshots.publish(9, START + HOUR, START, teacher(9).state_dict(), snapshots.read(1)[1])
    after = joined(through(service, chunks[3:]))
    assert set(after.version.tolist()) == {1, 9}
    with torch.no_grad():
        for version in (1, 9):
            rows = after.take(after.version == version)
            logit, _ = teacher(version)(torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.bag).long())
            assert np.allclose(rows.logit, logit.numpy(), atol=1e-5)


def test_a_full_ring_lets_the_oldest_go_and_counts_it(chunks, folder):
    service = das(folder, capacity=100, batch=32)
    rows = joined(through(service, chunks))
    counts = service.counters.counts
    assert len(service.waiting) <= 100 and counts["back_pressure"] > 0
    assert rows.first.sum() + counts["evicted"] + np.isnan(service.waiting.arrays()["label"]).sum() == 480
    assert len(set(seen(rows))) == len(seen(rows)) and set(seen(rows)) <= set(expected(chunks))


def test_it_goes_on_from_what_it_held(chunks, folder):
    straight = through(das(folder, batch=48), chunks)
    for at in (1, 4, 17):
        first = das(folder, batch=48)
        through(first, chunks[:at])
        first.drain()
        second = das(folder, batch=48)
        second.restore(first.arrays())
        rest = joined(through(second, chunks[at:]))
        for name, values in joined(straight[at:]).arrays().items():
            assert np.allclose(values, rest.arrays()[name], atol=1e-3 if values.dtype == np.float16 else 1e-5), name


def test_late_an_example_is_scored_when_its_label_has_come(chunks, tmp_path):
    """By a snapshot that was not yet there when it was shown; one whose label never comes costs no call."""
    snapshots = publish(tmp_path, [1])
    snapshots.publish(2, START + 8 * HOUR, START, teacher(2).state_dict(), snapshots.read(1)[1])
    told = [each.take((each.kind == IMPRESSION) | (each.id % 5 > 0)) for each in chunks]
    service, early = das(tmp_path, late=True, batch=32), das(tmp_path, batch=32)
    rows, before = joined(through(service, told)), joined(through(early, told))
    assert seen(rows) == seen(before) and rows.scored.all()
    assert (rows.scored_at >= rows.released)[rows.first].all()
    assert 0 < (rows.version == 1).mean() < 1 and (before.version == 1).all()
    labelled = {int(id) for each in told for id in each.id[each.kind != IMPRESSION]}
    assert service.counters["teacher_calls"] == len(labelled) < early.counters["teacher_calls"]


def test_late_it_goes_on_from_what_it_held(chunks, folder):
    straight = through(das(folder, batch=48, late=True), chunks)
    first, second = das(folder, batch=48, late=True), das(folder, batch=48, late=True)
    through(first, chunks[:9])
    first.drain()
    second.restore(first.arrays())
    rest = joined(through(second, chunks[9:]))
    for name, values in joined(straight[9:]).arrays().items():
        assert np.allclose(values, rest.arrays()[name], atol=1e-3 if values.dtype == np.float16 else 1e-5), name


def test_nothing_is_scored_by_a_scorer_that_is_full():
    scorers = Local(Scorer(None), limit=0)
    with pytest.raises(Exception, match="collect before submitting more"):
        scorers.submit(None)


def test_a_row_that_went_on_without_a_score_gets_none_later(folder):
    """A score given after the row's release would be of a teacher that may have learned the row's label."""

    class Busy(Local):
        busy = True

        @property
        def full(self):
            return self.busy or super().full

    scorers = Busy(Scorer(folder))
    service = das(folder, scorers=scorers, batch=1, patience=0.01)
    ids, bag = np.ones((1, len(DRIFT.schema.fields)), int), np.ones((1, DRIFT.schema.places), int)

    def shown(id, after, vertical):
        time, logged = np.array([START]), np.array([START + after])
        return impressions(ids, bag, id=np.array([id]), time=time, logged=logged, vertical=np.array([vertical]))

    service.push(shown(7, 0, 0))
    service.push(labels(DRIFT.schema, id=np.array([7]), time=np.array([START + 60]), label=np.array([1.0])))
    [first] = service.release().scored.tolist()
    scorers.busy = False
    service.push(shown(8, 3600, 0))
    service.push(shown(7, 3700, 1))
    [again] = service.release().scored.tolist()
    assert (first, again) == (False, False) and service.counters["sent"] == 1  # of the other example
    assert service.counters["score_missing"] == 1


def test_a_full_ring_says_what_it_forgets(folder):
    chunks = list(DRIFT.events())
    service = das(folder, capacity=40, batch=16)
    rows = joined(through(service, chunks))
    counted = service.counters
    assert counted["evicted"] + counted["forgotten_early"] + counted["unlabelled"] > 0
    assert len(rows) and len(service.waiting) <= 40


def test_no_index_of_snapshots_costs_scores_alone(tmp_path):
    publish(tmp_path, [1])
    (tmp_path / "index.json").write_text("{")
    service = das(tmp_path)
    rows = joined(through(service, DRIFT.events()))
    assert not rows.scored.any() and service.counters["no_teacher"] == 6 * 80
    assert "index.json cannot be read" in service.counters.named[-1]
