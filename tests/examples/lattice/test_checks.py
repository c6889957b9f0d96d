"""What is not as it is described is refused before anything is trained on it, with what to do about it."""

from dataclasses import replace

import pytest
import torch

from examples.lattice.data import Data, DataError, standardised
from examples.lattice.networks.samples import Events
from examples.lattice.networks.size import Schema
from tests.examples.lattice.test_data import rows


def data(train=None, test=None, fields=("f", "g"), **changed):
    train = rows(3, dense=torch.zeros(3, 1)) if train is None else train
    test = rows(2, dense=torch.zeros(2, 1)) if test is None else test
    described = dict(cardinalities=(2, 2), bag=1, numbers=("price",), domains=("a",), tasks=("t",))
    return Data("mine", train, test, fields, **{**described, **changed})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"dense": torch.zeros(3, 1).double()},
            r"dense is torch.float32 .* got torch.float64 .* with .to\(torch.float32",
        ),
        ({"labels": torch.zeros(3, 1).half()}, "labels is torch.float32 .* of floats, got torch.float16"),
        ({"ids": torch.zeros(3, 2).bool()}, "ids is torch.int64 .* got torch.bool"),
        ({"domain": torch.zeros(3, dtype=torch.int32)}, r"domain is torch.int64 \(N,\) of integers, got torch.int32"),
        ({"times": [0, 1, 2]}, r"times is a tensor of torch.int64, got list: torch.tensor"),
        ({"bag": torch.zeros(3, dtype=torch.int64)}, r"bag is torch.int64 \(N, columns\) of integers, got .* \(3,\)$"),
    ],
)
def test_columns_of_another_type_are_refused(change, said):
    with pytest.raises(DataError, match=said):
        rows(3, **change)


@pytest.mark.parametrize("wrong", [-1.0, 0.5, 5.0, torch.inf])
def test_labels_are_0_1_or_nan(wrong):
    labels = torch.tensor([[0.0], [torch.nan], [1.0]])
    dense = torch.zeros(3, 1)
    assert data(rows(3, labels=labels, dense=dense)).train.labels.isnan().sum() == 1
    labels[2] = wrong
    for parts in ({"train": rows(3, labels=labels, dense=dense)}, {"test": rows(3, labels=labels, dense=dense)}):
        with pytest.raises(
            DataError, match=rf"mine: labels are 0 or 1, .* 't' is {wrong} in row 2: make a task of each"
        ):
            data(**parts)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_numbers_are_finite(wrong):
    dense = torch.tensor([[1.0], [wrong], [2.0]])
    with pytest.raises(DataError, match=rf"mine: number 'price' is {wrong} in row 1 \(1 in all\): fill in"):
        data(rows(3, dense=dense))
    with pytest.raises(DataError, match=rf"standardised: number '0' is {wrong} in row 1"):
        standardised(dense, torch.ones(3, dtype=torch.bool))


def test_times_do_not_fall():
    at = lambda *times: rows(len(times), times=torch.tensor(times), dense=torch.zeros(len(times), 1))  # noqa: E731
    for train, test in (((1, 2, 2), (2, 3)), ((0, 0), (0, 0)), ((1, 9), (3, 9)), ((1, 2), ())):  # a split may overlap
        found = at(*test) if test else at(1)[:0]
        assert len(data(at(*train), found).train) == len(train)
    with pytest.raises(DataError, match=r"training rows lie in the order of time, row 2 is earlier .*argsort"):
        data(at(1, 3, 2), at(4))
    with pytest.raises(DataError, match=r"test rows lie in the order of time, row 1 is earlier"):
        data(at(1, 3), at(5, 4))
    with pytest.raises(DataError, match="all test rows are earlier than the training rows: the parts are swapped"):
        data(at(5, 6), at(1, 2))


@pytest.mark.parametrize("name", ["domain", "bag"])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(DataError, match=f"mine has a field named {name}: .* give the field another name"):
        data(fields=(name, "f"))


def test_names_occur_once():
    with pytest.raises(DataError, match="mine has fields of one name, f"):
        data(fields=("f", "f"))
    with pytest.raises(DataError, match="mine has domains of one name, a"):
        data(domains=("a", "a"))


IDS, SECONDS = torch.ones(4, 1, 3, 2, dtype=torch.int64), torch.ones(4, 1, 3)
MASK = torch.tensor([True, True, False]).expand(4, 1, 3)
LAST = torch.tensor([False, False, True]).expand(4, 1, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": MASK.float()}, r"events' mask is torch.bool .* of true and false, got torch.float32"),
        ({"mask": MASK.long()}, "events' mask is torch.bool .* got torch.int64"),
        ({"mask": MASK.byte()}, r"got torch.uint8 of \(4, 1, 3\): convert it with .to\(torch.bool\)"),
        ({"ids": IDS.float()}, "events' ids is torch.int64 .* got torch.float32"),
        ({"ids": IDS[..., 0]}, r"events' ids is torch.int64 \(rows, sources, length, fields\) .* of \(4, 1, 3\)$"),
        ({"seconds": SECONDS.double()}, "events' seconds is torch.float32 .* got torch.float64"),
        ({"seconds": SECONDS.masked_fill(LAST, torch.nan)}, "got nan in 4 places: give 0 where the mask says"),
        ({"seconds": SECONDS.masked_fill(LAST, torch.inf)}, "got inf in 4 places"),
        ({"seconds": -SECONDS}, "seconds of at least 0 before the impression, got -1.0 in 12 places"),
        ({"seconds": SECONDS[:3]}, r"need seconds and a mask of \(rows, sources, length\) each, got \(3, 1, 3\)"),
        ({"cardinalities": ((2,),)}, "expected ids for 1 sources of 2 fields"),
        ({"cardinalities": ((2, 1),)}, "event ids lie from 0 to below"),
    ],
)
def test_events_that_are_not_as_described_are_refused(change, said):
    described = dict(ids=IDS, seconds=SECONDS, mask=MASK, cardinalities=((2, 2),))
    assert Events(**described).ids is IDS
    with pytest.raises(DataError, match=said):
        Events(**{**described, **change})


def test_shares_lie_from_0_to_1():
    schema = Schema((2, 2), 1, 0, ((1,),), 1, 1, 1, id_dropout=(0.0, 1.0))
    for change in ({"id_dropout": (0.5, 50.0)}, {"id_dropout": (0.5, -0.1)}, {"drop": torch.nan}):
        with pytest.raises(ValueError, match="shares lie from 0 to 1"):
            replace(schema, **change)
