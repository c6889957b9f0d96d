"""Two uses of a source whose Q is known: choose the users of a category at a price, forecast how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from examples.audience.quality.result import Quality
from loka_compile.sampling.intervals import Array, Bootstrap, Estimate, interval


@dataclass(frozen=True, eq=False)
class Curve:
    """Users in the order they are bought, surest first. users, precision, right [P]: after each step of equal sureness:
    how many are bought, which share of them is of the category, how many that is. cost [P]: price of one that is."""

    users: Array
    precision: Array
    right: Array
    cost: Array


@dataclass(frozen=True, eq=False)
class Choice:
    """chosen [N] bool; users, right, cost: how many are bought, how many of them are of the category, total price."""

    chosen: np.ndarray
    users: int
    right: float
    cost: float


def trade_off(chances: ArrayLike, price: float) -> Curve:
    """Precision against the number of users bought. chances [N]: P(category | tags); price: of one user."""
    p = _chances(chances)
    levels, counts = np.unique(-p, return_counts=True)
    users, right = np.cumsum(counts).astype(float), np.cumsum(-levels * counts)
    cost = np.divide(price * users, right, out=np.full(len(right), np.inf), where=right > 0)
    return Curve(users, right / users, right, cost)


def choose(chances: ArrayLike, price: float, value: float) -> Choice:
    """The users who are worth their price: P(category | tags) times the value of one of the category exceeds it."""
    if not isinstance(price, Real) or not isinstance(value, Real) or not price >= 0 or not value > 0:
        raise ValueError(
            f"a price is not negative and a value is positive, both of one user; got price={price!r}, value={value!r}"
        )
    p = _chances(chances)
    chosen = p * value > price
    return Choice(chosen, int(chosen.sum()), float(p[chosen].sum()), price * int(chosen.sum()))


def chances_of(tags: ArrayLike, source: Quality, category: int) -> Array:
    """P(category | tag) of each user, [N], for `choose` and `trade_off`; tags [N]: 0..K, those of all users on offer.

    Where the source errs alike, tags are as often right as the mix of these users makes them.
    """
    codes, counts = _counted(tags, source)
    return believed(source, category, counts)[codes]


def believed(source: Quality, category: int, counts: ArrayLike | None = None) -> Array:
    """P(category | tag) by tag, [K + 1], to buy by; counts: as `Quality.chance` has them.

    Where the campaigns bear out no assumption it is the least that it can be, so that nobody is bought whose worth is
    not certain.
    """
    found = source.chance(category, counts)
    return np.asarray(found[0] if source.sure else found[1:3].min(0))


def forecast(tags: ArrayLike, source: Quality, category: int, level: float = 0.95) -> Estimate:
    """How many users are of `category`: the sum of P(category | tag) over all users. tags [N]: 0..K.

    The interval is that of Q; what chance does to so many users is left out, as it is little beside it.
    """
    _, counts = _counted(tags, source)
    totals = source.chance(category, counts) @ counts
    return Estimate(float(totals[0]), *map(float, interval(totals, Bootstrap(len(totals) - 1, level))))


def _counted(tags: ArrayLike, source: Quality) -> tuple[np.ndarray, Array]:
    """Users' tags, and how many have each."""
    codes, number = np.asarray(tags), source.chance(0).shape[1]
    if codes.ndim != 1 or codes.dtype.kind not in "iu" or (codes < 0).any():
        raise ValueError(
            f"tags must be [N] numbers 0 to {number - 1}: 0 for none, 1 + the category's place among the "
            f"names; got {codes.dtype} {codes.shape}"
        )
    counts = np.bincount(codes, minlength=number).astype(float)
    if len(counts) > number:
        raise ValueError(f"tags must be 0 to {number - 1}; got {len(counts) - 1}")
    return codes, counts


def _chances(chances: ArrayLike) -> Array:
    """Raises ValueError for what is no P(category | tags) of each user, as Quality.chance(category)[0][tags] is."""
    try:
        p = np.asarray(chances, float)
    except (TypeError, ValueError):
        raise ValueError(f"chances must be [N] between 0 and 1; got {chances!r:.60}") from None
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all() or len(p) == 0:
        raise ValueError(f"chances must be [N] between 0 and 1; got shape {p.shape}")
    return p
