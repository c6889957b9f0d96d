"""The sample's cells against known counts: exact where they decide, else nearer, with intervals at their rate."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from examples.audience.reach.calibrate import Cells, around, calibrated, interval, solved, stretched
from examples.audience.reach.design import Design
from examples.audience.reach.formula import Formula, of_trial, sums
from examples.audience.reach.model import DECADES, Expected, Model
from examples.audience.reach.schema import Feature, Schema

NAMES = "abcd"
SCHEMA = Schema(tuple(Feature(name, (0, 1)) for name in NAMES))
ATOMS = tuple((name, (1,)) for name in NAMES)
N = 100_000


def population(rng):
    """[16] rows by cell, with interactions of every order."""
    return rng.multinomial(N, rng.dirichlet(np.full(16, 0.6))).astype(float)


def model_of(cells, errors=1.0):
    design = Design(SCHEMA, (), {})
    return Model(design, np.zeros((1, 0), np.int32), np.array([N]), {}, np.full(DECADES, errors), np.ones(DECADES))


def drawn(cells, n, rng):
    rows = rng.multivariate_hypergeometric(cells.astype(int), n)
    weight = N / n
    return Cells(rows * weight, rows, n * weight**2)


def test_cells_come_over_a_wire_as_they_are():
    cells = drawn(population(np.random.default_rng(5)), 1000, np.random.default_rng(6))
    there = pickle.loads(pickle.dumps(cells))
    assert np.array_equal(there.weights, cells.weights) and np.array_equal(there.rows, cells.rows)
    assert there.squares == cells.squares and there.rows.dtype == cells.rows.dtype


def known(cells, most):
    """Sums of at most `most` criteria."""
    found = sums(4) @ cells
    found[[i for i in range(16) if bin(i).count("1") > most]] = np.nan
    return found


def test_what_is_counted_is_exact():
    rng = np.random.default_rng(0)
    cells = population(rng)
    either = Formula(ATOMS, np.array([bool(i & 0b11) for i in range(16)]))  # a or b: pairs decide
    value, spread = solved(
        either, Expected(np.full(16, N / 16), known(cells, 2)), drawn(cells, 500, rng), model_of(cells)
    )
    assert (value, spread) == (pytest.approx(cells[either.true].sum()), 0)


def test_known_sums_help_and_intervals_hold():
    """At the same sample: the more is known the smaller the error, and intervals hold at about their rate."""
    errors, inside = {0: [], 2: [], 3: []}, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        cells = population(rng)
        sample = drawn(cells, 2000, rng)
        for most, own in errors.items():
            expected = Expected(np.full(16, N / 16), known(cells, most))
            value, spread = solved(of_trial(ATOMS), expected, sample, model_of(cells, errors=50.0))  # a model of no use
            own.append(value - cells[-1])
            if most == 3:
                low, high = interval(np.array(value), np.array(spread), N)
                inside.append(low <= cells[-1] <= high)
    rms = {most: np.sqrt(np.mean(np.square(own))) for most, own in errors.items()}
    direct = np.sqrt(
        np.mean([c[-1] * 50 * (1 - c[-1] / N) for c in map(population, map(np.random.default_rng, range(400)))])
    )
    assert rms[0] == pytest.approx(direct, rel=0.12)  # nothing known: the sample's own error
    assert rms[3] < 0.5 * rms[0] and rms[3] < rms[2] < 0.9 * rms[0]
    assert abs(np.mean(errors[3])) < 0.15 * rms[3]
    assert 0.9 <= np.mean(inside) <= 0.985  # before they are stretched by what trials say


def test_a_model_that_is_right_is_believed():
    rng = np.random.default_rng(1)
    cells = population(rng)
    expected = Expected(cells, known(cells, 1))
    value, spread = solved(of_trial(ATOMS), expected, drawn(cells, 300, rng), model_of(cells, errors=0.0))
    assert value == pytest.approx(cells[-1], abs=3 * np.sqrt(cells[-1])) and spread < 1.5 * np.sqrt(cells[-1])


def test_no_answer_is_below_nothing_or_above_what_is_known():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cells = population(rng)
        expected = Expected(np.full(16, N / 16), known(cells, 2))
        value, _ = solved(of_trial(ATOMS), expected, drawn(cells, 40, rng), model_of(cells, errors=5.0))
        assert 0 <= value <= np.nanmin(known(cells, 2))


def test_lost_shards_make_the_answer_wider():
    rng = np.random.default_rng(2)
    cells = population(rng)
    model = model_of(cells)
    model.__dict__["_asked"] = {ATOMS: Expected(np.full(16, N / 16), known(cells, 2))}
    whole = drawn(cells, 4000, rng)
    rows = rng.multivariate_hypergeometric(whole.rows, 1000)
    quarter = Cells(rows * N / 4000, rows, 1000 * (N / 4000) ** 2)
    widths = [
        (found := calibrated(of_trial(ATOMS), each, model, a)).high - found.low
        for each, a in ((whole, 1), (quarter, 0.25))
    ]
    assert widths[1] > 1.4 * widths[0]


def test_intervals_are_of_whole_rows_and_stay_inside():
    low, high = interval(np.array([0.2, 12.3, 5000.0, N - 0.2]), np.array([0.5, 0.1, 100.0, 0.5]), N)
    assert low.tolist()[0] == 0 and high[0] >= 1 and (low[1], high[1]) == (12, 13)
    assert 4790 < low[2] < 4810 and 5190 < high[2] < 5210
    assert high[3] == N and low[3] <= N - 1


def _asked(seed, errors):
    """A conjunction of a population of its own: what is known, what the sample says, and the truth."""
    rng = np.random.default_rng(seed)
    cells = rng.multinomial(N, rng.dirichlet(np.full(16, 0.25))).astype(float)
    known_ = known(cells, 2)
    guess = cells * np.exp(errors * rng.standard_normal(16))
    return Expected(guess, known_), drawn(cells, 2000, rng), cells[-1]


def test_intervals_hold_whatever_the_size_of_the_truth():
    """Trials say how wide intervals have to be for truths of each decade, and new questions find it so."""
    asked = [_asked(seed, 1.0) for seed in range(2400)]
    asked = [each for each in asked if each[2] >= 5]
    learned, new = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    trials = (ATOMS,) * len(learned)
    bare = Model(Design(SCHEMA, (), {}, (), trials), np.zeros((1, 0), np.int32), np.array([N]), {})
    model = stretched(
        bare, [e for e, _, _ in learned], [s for _, s, _ in learned], np.array([t for _, _, t in learned])
    )
    inside = {}
    for expected, sample, truth in new:
        low, high = around(*solved(of_trial(ATOMS), expected, sample, model), model)
        inside.setdefault(int(model.decade(np.array(truth))), []).append(low <= truth <= high)
    rates = {decade: np.mean(own) for decade, own in inside.items() if len(own) >= 150}
    assert {0, 1, 2} <= set(rates) and all(0.915 <= rate <= 0.985 for rate in rates.values()), rates


def test_an_interval_joins_what_each_decade_leaves_open():
    stretch = np.array([1.0, 1.0, 4.0, 1.0, 1.0, 1.0])
    model = replace(model_of(None), stretch=stretch)
    narrow = interval(np.array(1100.0), np.array(50.0), N)
    low, high = around(1100.0, 50.0, model)  # truths under 1,000 are known worse: down to there the answer says less
    assert high == narrow[1] and low == interval(np.array(1100.0), np.array(200.0), N)[0] < narrow[0]
    low, high = around(5000.0, 50.0, model)
    assert (low, high) == tuple(map(float, interval(np.array(5000.0), np.array(50.0), N)))
    low, high = around(0.0, 0.4, model)
    assert low == 0 and high >= 1
    low, high = around(0.7, 1e-9, replace(model, stretch=np.full(DECADES, 1e-3)))
    assert (low, high) == (0, 1)
