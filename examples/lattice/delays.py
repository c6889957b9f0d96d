"""How long people take: the purchases of CDNOW, their gaps as delays of conversions, and delays of Criteo's shape.

CDNOW is a shop's log of 69,659 purchases by 23,570 customers, January 1997 to June 1998, by the day; it lies in the
package `lifetimes` (`pip install --no-deps lifetimes==0.11.3`), which is not imported. `purchases` alone is real
delayed feedback: a purchase is an impression, the customer's next purchase its conversion. `semi_synthetic` joins the
gaps to rows of another data set, `as_criteo` draws delays spread as Criteo's are published to be; whatever is measured
on either must say *semi-synthetic*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from examples.lattice.data import DataError, installed

LIFETIMES = ("lifetimes", "0.11.3")
DAY = 86_400.0
NEVER = float("inf")
CRITEO = ((0.0, 60.0), (0.35, 3600.0), (0.5, DAY), (0.87, 14 * DAY), (1.0, 30 * DAY))
"""Share of conversions within so many seconds (Chapelle, "Modeling delayed feedback in display advertising", KDD 2014:
35 % within an hour, 50 % within a day, 13 % after two weeks, attributed within 30 days). That none is faster than a
minute, and how they lie between these marks, evenly by the logarithm, is ours [I]."""


@dataclass(frozen=True, eq=False)
class Purchases:
    """P days on which a customer bought something, by day and then customer.

    customers (P,), days (P,) since the first, cds (P,) bought on that day, dollars (P,) spent,
    gap (P,) days until the same customer's next purchase, inf where there is none in the log,
    before (P,) purchases of the same customer on earlier days, since (P,) days since the last one (0 for the first)
    """

    customers: Tensor
    days: Tensor
    cds: Tensor
    dollars: Tensor
    gap: Tensor
    before: Tensor
    since: Tensor

    def __len__(self) -> int:
        return len(self.days)


def purchases() -> Purchases:
    """CDNOW's log."""
    return read(installed(*LIFETIMES, "CDNOW_master.txt"))


def read(path: Path) -> Purchases:
    """A file of lines `customer date(YYYYMMDD) cds dollars` under one line of names."""
    bought: dict[tuple[int, int], list[float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[1:], start=2):
        try:
            customer, day, cds, dollars = line.split()
            key = int(customer), date.fromisoformat(f"{day[:4]}-{day[4:6]}-{day[6:]}").toordinal()
            total = bought.setdefault(key, [0.0, 0.0])
            total[0] += int(cds)
            total[1] += _amount(dollars)
        except ValueError as error:
            expected = "a customer, a date as 19970131, a count and an amount"
            raise DataError(f"{path}, line {number}: expected {expected}, got {line!r}") from error
    if not bought:
        raise DataError(f"{path} has no purchases")
    keys = sorted(bought)  # by customer, then day
    customer, day = torch.tensor(keys).T
    same = customer[1:] == customer[:-1]
    steps = (day[1:] - day[:-1]).double()
    nothing = torch.zeros(1, dtype=torch.float64)
    gap = torch.cat([steps.where(same, NEVER), nothing + NEVER])
    since = torch.cat([nothing, steps.where(same, 0.0)])
    first = torch.cat([torch.ones(1, dtype=torch.bool), ~same]).nonzero().squeeze(1)
    starts = first.repeat_interleave(torch.diff(first, append=torch.tensor([len(keys)])))
    before = torch.arange(len(keys)) - starts
    amounts = torch.tensor([bought[key] for key in keys], dtype=torch.float64)
    order = torch.argsort(day, stable=True)
    columns = customer, day - day.min(), amounts[:, 0], amounts[:, 1], gap, before, since
    return Purchases(*(column[order] for column in columns))


def _amount(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def semi_synthetic(users: Tensor, converts: Tensor, scale: float, seed: int = 0, by_frequency: bool = False) -> Tensor:
    """Seconds until each row converts, inf for rows that do not: delays with CDNOW's real gaps, hence semi-synthetic.

    Each conversion takes one of all gaps. by_frequency: every user is dealt to a class of customers who came back about
    equally often (once, 2 or 3 times, 4 to 7, ...), in proportion to the customers in it, and takes gaps of that class:
    people who buy seldom are slow, so delays depend on who it is. Gaps are whole days in the file; each is spread
    evenly over its last day. scale: what a day becomes, in days.
    """
    bought = purchases()
    real = bought.gap < NEVER
    customers, gaps = bought.customers[real], bought.gap[real]
    _, place, counts = customers.unique(return_inverse=True, return_counts=True)
    frequency = torch.log2(counts.double()).long() * by_frequency  # of each customer
    gaps = gaps[torch.argsort(frequency[place], stable=True)]
    sizes = frequency[place].bincount()  # gaps in each class
    generator = torch.Generator().manual_seed(seed)
    known, who = users.unique(return_inverse=True)
    dealt = frequency[torch.randint(len(frequency), (len(known),), generator=generator)][who]
    drawn = torch.rand(2, len(users), dtype=torch.float64, generator=generator)
    chosen = (sizes.cumsum(0) - sizes)[dealt] + (drawn[0] * sizes[dealt]).long()
    return ((gaps[chosen] - drawn[1]) * DAY * scale).where(converts > 0.5, NEVER)


def as_criteo(converts: Tensor, seed: int = 0) -> Tensor:
    """Seconds until each row (N,) converts, inf for rows that do not: spread as `CRITEO`, whoever it is."""
    shares, seconds = (torch.tensor(column, dtype=torch.float64) for column in zip(*CRITEO, strict=True))
    logs = seconds.log()
    drawn = torch.rand(len(converts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mark = torch.searchsorted(shares, drawn, right=True).clamp(1, len(shares) - 1)
    part = (drawn - shares[mark - 1]) / (shares[mark] - shares[mark - 1])
    return torch.exp(torch.lerp(logs[mark - 1], logs[mark], part)).where(converts > 0.5, NEVER)
