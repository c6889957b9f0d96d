"""Windows are assigned by a hash: fixed, spread as asked, independent of everything but key and time."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.zipper.windows import DAY, Windows, uniform

KEYS = torch.stack([torch.arange(30_000) // 7, torch.arange(30_000) % 11], dim=1)
TIMES = torch.arange(30_000, dtype=torch.float64) * 13


def test_the_hash_is_splitmix64():
    mask = 2**64 - 1

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the generator's first published number
    keys, times = torch.tensor([[3, 4]]), torch.tensor([2.0], dtype=torch.float64)
    expected = 9
    for value in (3, 4, 0x4000000000000000):  # the bits of 2.0
        expected = mix(expected ^ mix(value))
    assert uniform(keys, times, 9)[0] == (expected >> 11) / 2**53


@pytest.mark.parametrize(
    ("shares", "expected"), [((), [1 / 3] * 3), ((1, 1, 2), [0.25, 0.25, 0.5]), ((0, 1, 0), [0, 1, 0])]
)
def test_shares_are_as_asked(shares, expected):
    found = Windows(shares=shares).assign(KEYS, TIMES).bincount(minlength=3) / len(KEYS)
    assert found.tolist() == pytest.approx(expected, abs=0.01)


def test_windows_depend_on_user_item_time_and_seed_alone():
    windows = Windows()
    found = windows.assign(KEYS, TIMES)
    part = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))[:500]
    assert torch.equal(windows.assign(KEYS[part], TIMES[part]), found[part])
    for keys, times, seed in (
        (KEYS + torch.tensor([1, 0]), TIMES, 0),
        (KEYS.flip(1), TIMES, 0),
        (KEYS, TIMES + 1, 0),
        (KEYS, TIMES, 1),
    ):
        same = (Windows(seed=seed).assign(keys, times) == found).float().mean()
        assert same == pytest.approx(1 / 3, abs=0.02)


def test_an_identity_tells_apart_what_deals_otherwise_and_nothing_else():
    assert Windows((3.0, 10.0), (1.0, 1.0)).identity == Windows((3, 10)).identity
    assert Windows((3.0, 10.0)).identity == "3.0, 10.0 s in shares 1.0, 1.0 with seed 0"
    kinds = Windows((3.0, 10.0)), Windows((3.0, 11.0)), Windows((3.0, 10.0), (1.0, 2.0)), Windows((3.0, 10.0), (), 1)
    assert len({each.identity for each in kinds}) == 4


def test_windows_that_cannot_be_are_refused():
    assert Windows().longest == 7 * DAY and len(Windows((5.0,))) == 1
    nan, never = float("nan"), float("inf")
    for seconds in ((), (0.0,), (5.0, 5.0), (7.0, 2.0), (nan,), (60.0, nan), (nan, 60.0), (60.0, never), (never,)):
        with pytest.raises(ValueError, match="positive and grow"):
            Windows(seconds)
    for shares in ((1.0,), (-1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, nan, 1.0), (nan, 1.0, 1.0), (1.0, 1.0, never)):
        with pytest.raises(ValueError, match="expected 3 finite shares"):
            Windows(shares=shares)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="a seed is a whole number from 0 to 2\\^64 - 1, got"):
        Windows(seed=seed)
    assert Windows(seed=2**64 - 1).assign(KEYS, TIMES).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("keys", [KEYS[:, 0], KEYS.double(), KEYS[1:], KEYS.T])
def test_keys_that_are_no_row_an_impression_are_refused(keys):
    with pytest.raises(ValueError, match="expected a row of int64 keys and a time an impression"):
        Windows().assign(keys, TIMES)
