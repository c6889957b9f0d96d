"""Streams to compare on: MovieLens with delays of CDNOW's or of Criteo's shape (semi-synthetic), CDNOW itself, Criteo's
log for who holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from examples import movielens
from examples.lattice import data
from examples.lattice.delays import Purchases, as_criteo, purchases, semi_synthetic
from examples.lattice.held import criteo
from examples.lattice.zipper.arms import Problem
from examples.lattice.zipper.log import log_of
from examples.lattice.zipper.windows import DAY, HOUR, Windows

DRAWN = float("inf")  # the end of a log whose delays are drawn: no label is censored
PRETRAINED = 0.3  # the first part of a stream, for pretraining
FIELDS = ("age", "gender", "occupation", "year")
SCALE = 1 / 60  # a day of CDNOW in MovieLens, in days: the median gap, 34 days, becomes 14 hours
SHARES = (1.0, 1.0, 4.0)
"""Of the impressions, what each window gets. Chosen, as windows and rates were, on seed 0 of these streams, which no
table has; but all seeds are judged on the same rows, so this is no choice made beforehand."""
RATING = (6 * HOUR, DAY, 7 * DAY)
BUYING = (7 * DAY, 30 * DAY, 60 * DAY)
CLICKING = (HOUR, DAY, 30 * DAY)  # those of Criteo's marks that `delays.CRITEO` has


def before_stream(problem: Problem) -> Problem:
    """What was known when the problem's stream started, as a problem of its own: the later half of the rows whose
    longest window had closed. What is chosen on it has seen no row, and no label, of the stream."""
    now, rows = problem.opening, slice(0, problem.start)
    ids, bag = problem.ids[rows], problem.bag[rows]
    name = f"{problem.name}, before the stream"
    return replace(problem, name=name, log=problem.log.until(now), ids=ids, bag=bag, start=problem.mature // 2, end=now)


def movielens_with_delays(seed: int = 0, rows: slice = slice(None), by_frequency: bool = False) -> Problem:
    """Semi-synthetic: films, users and likes (four stars or more) of MovieLens, delays from CDNOW's gaps."""
    found = data.movielens().everything()[rows]
    delays = semi_synthetic(found.users, found.labels[:, 0], SCALE, seed, by_frequency)
    name = f"MovieLens, delays of CDNOW{' by frequency' if by_frequency else ''} (semi-synthetic)"
    return _rated(name, found, delays, Windows(RATING, SHARES))


def movielens_as_criteo(seed: int = 0, rows: slice = slice(None)) -> Problem:
    """Semi-synthetic: the same likes, delays spread as Criteo's are, and windows at the marks of that spread."""
    found = data.movielens().everything()[rows]
    delays = as_criteo(found.labels[:, 0], seed)
    return _rated("MovieLens, delays as Criteo's (semi-synthetic)", found, delays, Windows(CLICKING, SHARES))


def cdnow(seed: int = 0, rows: slice = slice(None), bought: Purchases | None = None) -> Problem:
    """Real delays: will this customer buy again within 60 days?

    A purchase is an impression, the customer's next one its conversion. Nothing is drawn, whatever the seed. The log
    ends with the file's last day, whatever `rows` are taken: of a purchase in its last 60 days nobody knows."""
    found = purchases() if bought is None else bought
    ids = torch.stack(
        [
            found.customers,
            found.cds.long().clamp(max=20),
            _octave(found.dollars),
            found.before.clamp(max=63),
            _octave(found.since),
            found.days.long() % 7,
        ],
        dim=1,
    )[rows]
    # Days are all the file has: everything of a day is predicted before any of it is learned, as `arms` sees to.
    times = found.days.double()[rows] * DAY
    keys = torch.stack([found.customers, found.before], dim=1)[rows]
    log = log_of(times, keys, found.gap[rows] * DAY)
    bag = torch.zeros(len(ids), 1, dtype=torch.int64)
    start = len(log) // 2  # all customers came in the first three months: later on two windows have closed
    end = float(found.days.max()) * DAY
    return Problem("CDNOW (real delays)", log, ids, bag, _sizes(ids), 1, Windows(BUYING, SHARES), start, end)


def criteo_log(path: Path) -> Problem:
    """Criteo's conversion log, for who holds it; it ends with its last event, click or conversion. Its integers are
    standardised by the rows for pretraining: the stream does not know what later ones will be."""
    found = criteo(path, scaled_share=PRETRAINED)
    rows = found.data.everything()
    log = log_of(rows.times, torch.stack([rows.users, rows.items], dim=1), found.delay)
    numbers = (rows.dense.clamp(-3, 3) * 4 + 13).long()  # buckets, as the model takes ids only
    ids = torch.cat([rows.ids, numbers], dim=1)
    start = round(len(log) * PRETRAINED)
    end = float(torch.cat([log.times, log.converted]).max())
    return Problem("Criteo (real delays)", log, ids, rows.bag, _sizes(ids), 1, Windows(CLICKING, SHARES), start, end)


def _rated(name: str, found: data.Rows, delays: Tensor, windows: Windows) -> Problem:
    """Features are what is known at once: the counters of earlier likes (taste, acclaim) would see labels before their
    time. Users and films keep the files' numbers, so that newcomers can be learned along the stream."""
    columns = [movielens.FIELDS.index(field) for field in FIELDS]
    ids = torch.cat([found.users[:, None], found.items[:, None], found.ids[:, columns]], dim=1)
    log = log_of(found.times, torch.stack([found.users, found.items], dim=1), delays)
    start = round(len(log) * PRETRAINED)
    return Problem(name, log, ids, found.bag, _sizes(ids), int(found.bag.max()) + 1, windows, start, DRAWN)


def _octave(amounts: Tensor) -> Tensor:
    """0 for less than 1, then two buckets an octave, at most 24."""
    return (2 * torch.log2(amounts.double().clamp(min=1.0)) + (amounts >= 1)).long().clamp(max=24)


def _sizes(ids: Tensor) -> tuple[int, ...]:
    return tuple((ids.amax(0) + 1).tolist())
