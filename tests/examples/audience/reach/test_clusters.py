"""Users that are drawn with all their rows: intervals hold, whoever has most of the rows."""

import numpy as np
import pytest

from examples.audience.reach.answer import Groups
from examples.audience.reach.clusters import count, mean, total
from examples.audience.reach.measures import Spread, of_values
from tests.examples.audience.reach.test_answer import summed

USERS = 3000


def population(rng):
    """Rows of each user, of whom 2 in 100 have most; and the user of each row."""
    rows = np.where(rng.random(USERS) < 0.02, rng.integers(50, 200, USERS), rng.integers(1, 6, USERS))
    return rows, np.repeat(np.arange(USERS), rows)


def drawn(user, there, values, rate, rng):
    """What a sample of a share `rate` of the users says of the rows that match, and of its users who have one."""
    own = np.flatnonzero((rng.random(USERS) < rate)[user])
    number = np.unique(user[own], return_inverse=True)[1]
    rows, weight = np.bincount(number), 1 / rate
    groups = Groups(rows, np.full(len(rows), weight), rows * weight**2, weight, float(len(user)), True)
    own, number = own[there[own]], number[there[own]]
    users = np.unique(number)
    by_row = summed(number, np.full(len(own), weight), values[own])
    return by_row, summed(users, np.full(len(users), weight), np.ones(len(users))), groups


def held(user, there, values, rate=0.1, times=150):
    truth = {"count": there.sum(), "users": len(np.unique(user[there]))}
    truth |= {"total": values[there].sum(), "mean": values[there].mean()}
    spread, hits = of_values(values), {name: [] for name in truth}
    for seed in range(times):
        own, users, groups = drawn(user, there, values, rate, np.random.default_rng(seed))
        found = {"count": count(own, groups, False), "users": count(users, groups, True)}
        found |= {"total": total(own, groups, spread), "mean": mean(own, groups, spread)}
        for name, reach in found.items():
            assert not reach.low > reach.value and not reach.value > reach.high
            hits[name].append(reach.low - 1e-9 <= truth[name] <= reach.high + 1e-9)
    return {name: float(np.mean(each)) for name, each in hits.items()}


ROWS, USER = population(np.random.default_rng(1))
DRAW = np.random.default_rng(2).random(len(USER))


WHO = {
    "rare": DRAW < 0.002,
    "a tenth": DRAW < 0.1,
    "half": DRAW < 0.5,
    "heavy": ROWS[USER] >= 150,
    "not heavy": ROWS[USER] < 150,
    "light": ROWS[USER] < 50,
    "a third of the users": USER % 3 == 0,
    "nearly all users": USER < 2985,
}


@pytest.mark.parametrize("who", WHO)
def test_intervals_hold(who):
    values = (np.random.default_rng(3).random(len(USER)) < 0.02).astype(float)
    rates = held(USER, WHO[who], values, times=100)
    rates |= {"total of ones": held(USER, WHO[who], np.ones(len(USER)), times=100)["total"]}
    assert min(rates.values()) >= 0.92, rates


def test_rows_of_everybody_are_known():
    """They were 13,110 [7,398, 15,309] of 15,920."""
    own, _, groups = drawn(USER, np.ones(len(USER), bool), np.ones(len(USER)), 0.1, np.random.default_rng(0))
    assert count(own, groups, False).value == pytest.approx(len(USER))


def test_nobody_found_leaves_the_rows_of_a_few_users_open():
    """The end was 30, three times the weight of a user, where a few had 2,566 rows."""
    nobody = summed(np.zeros(0, int), np.zeros(0), np.zeros(0))
    _, _, groups = drawn(USER, ROWS[USER] < 150, np.ones(len(USER)), 0.1, np.random.default_rng(4))
    assert groups.rows.max() > 50
    by_row, by_user = (count(nobody, groups, users) for users in (False, True))
    assert by_row.low == by_user.low == 0 and by_row.high > 2566 and 30 <= by_user.high < 40
    assert total(nobody, groups, Spread(0, 1, 9, (3, 3, 3, 3))).high == pytest.approx(3)


def test_users_of_one_row_each_are_known_by_their_rows():
    """Nearly everybody was 2,950 [660, 2,960] of 2,985, as Wilson's interval had one effective row."""
    user = np.arange(USERS)
    assert held(user, user >= 15, np.ones(USERS))["users"] >= 0.93
    for seed in range(5):
        _, own, groups = drawn(user, user >= 15, np.ones(USERS), 0.1, np.random.default_rng(seed))
        found = count(own, groups, True)
        assert 2880 < found.low <= found.value <= found.high <= USERS


def test_a_sample_of_all_users_is_certain():
    own, users, groups = drawn(USER, DRAW < 0.1, np.ones(len(USER)), 1 - 1e-16, np.random.default_rng(0))
    for found, truth in (
        (count(own, groups, False), (DRAW < 0.1).sum()),
        (count(users, groups, True), len(np.unique(USER[DRAW < 0.1]))),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((truth,) * 3)
    nobody = count(summed(np.zeros(0, int), np.zeros(0), np.zeros(0)), groups, True)
    assert (nobody.value, nobody.low, nobody.high) == (0, 0, 0)


def test_one_user_says_little():
    groups = Groups(np.array([4]), np.array([50.0]), np.array([1e4]), 50.0, 200.0, True)
    one = summed(np.zeros(1, int), np.array([50.0]), np.array([1.0]))
    found = count(one, groups, False), mean(one, groups, Spread(0, 1, 200, (9, 9, 9, 9)))
    assert [(each.low, each.high) for each in found] == [(1, 197), (0, 1)]
