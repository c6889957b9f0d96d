"""CDNOW: gaps as they are in the log, dealt to users as delays."""

from __future__ import annotations

import pytest
import torch

from examples.lattice import delays
from examples.lattice.data import DataError
from examples.lattice.delays import CRITEO, DAY, NEVER, as_criteo, semi_synthetic

LOG = """ customer_id  date number_of_cds  dollar_value
 00002 19970112  1   12.00
 00002 19970112  5   77.00
 00001 19970101  1   11.77
 00002 19970201  2   20.00
 00003 19970131  1   5.50
"""


def test_gaps_are_days_to_the_same_customers_next_purchase(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(LOG)
    found = delays.read(path)
    assert found.customers.tolist() == [1, 2, 3, 2] and found.days.tolist() == [0, 11, 30, 31]
    assert found.cds.tolist() == [1, 6, 1, 2] and found.dollars.tolist() == [11.77, 89, 5.5, 20]
    assert found.gap.tolist() == [NEVER, 20, NEVER, NEVER]
    assert found.before.tolist() == [0, 0, 0, 1] and found.since.tolist() == [0, 0, 0, 20]


def test_the_shops_log_is_all_there():
    found = delays.purchases()
    assert found.cds.sum() == 167_881 and len(found.customers.unique()) == 23_570 and len(found) == 67_591
    assert int((found.gap < NEVER).sum()) == len(found) - 23_570  # all but each customer's last
    assert found.gap[found.gap < NEVER].min() == 1 and int(found.days.max()) == 545
    assert found.dollars.sum() == pytest.approx(2_500_315.63, abs=0.01)


@pytest.mark.parametrize(
    "line", ["00001 1997 1 2.0", "00001 19970101 1", "00001 19971301 1 2.0", "x 19970101 1 2", "1 19970101 1 nan"]
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "log.txt"
    path.write_text(LOG + line)
    with pytest.raises(DataError, match=r"line 7: expected a customer.* got '"):
        delays.read(path)


def test_an_empty_log_is_an_error(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("names\n")
    with pytest.raises(DataError, match="no purchases"):
        delays.read(path)


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Customer 2 came back after 20 days; customer 3 after 28 and after 2."""
    path = tmp_path / "log.txt"
    path.write_text(LOG.replace("19970131", "19970210") + " 00003 19970310 1 5.0\n 00003 19970312 1 5.0\n")
    log = delays.read(path)
    monkeypatch.setattr(delays, "purchases", lambda: log)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("by_frequency", [False, True])
def test_delays_are_real_gaps(by_frequency):
    users = torch.arange(50).repeat_interleave(40)
    converts = (torch.arange(2000) % 2).float()

    def drawn(seed):
        return semi_synthetic(users, converts, 0.5, seed, by_frequency) / (DAY * 0.5)

    found = drawn(3)
    assert bool((found.isinf() == (converts == 0)).all())
    days = found.ceil().where(converts > 0.5, 0.0)
    assert set(days.unique().tolist()) == {0, 2, 20, 28}
    by_user = [set(days[users == user].unique().tolist()) - {0} for user in range(50)]
    if by_frequency:  # of customers who come back as often
        assert {frozenset(gaps) for gaps in by_user} == {frozenset({20.0}), frozenset({2.0, 28.0})}
    else:
        assert all(gaps == {2.0, 20.0, 28.0} for gaps in by_user)
    assert torch.equal(found, drawn(3)) and not torch.equal(found, drawn(4))


def test_delays_as_criteos_have_the_published_marks_and_lie_evenly_between() -> None:
    converts = torch.arange(400_000) % 2
    delays = as_criteo(converts, seed=3)
    assert torch.equal(delays.isfinite(), converts > 0.5)
    found = delays[delays.isfinite()]
    for share, seconds in CRITEO:
        assert float((found <= seconds).double().mean()) == pytest.approx(share, abs=0.005)
    assert float(found.min()) >= 60.0 and float(found.max()) <= 30 * DAY
    first = (found >= 60) & (found < 3600)
    middle = float((found[first] <= 60 * 60**0.5).double().mean())  # half of the logarithm
    assert middle == pytest.approx(0.5, abs=0.01)
    assert torch.equal(delays, as_criteo(converts, seed=3)) and not torch.equal(delays, as_criteo(converts, seed=4))
