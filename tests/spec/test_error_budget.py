"""The error budget: what holds is not missed, and what is not a number never holds."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.probe.session import probe
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.options import Options

ERRORS = st.floats(allow_nan=True, allow_infinity=True)


@given(mere=ERRORS, sqnr_db=ERRORS, max_mere=st.floats(0, 10), min_sqnr_db=st.floats(0, 100))
def test_what_holds_misses_nothing(mere, sqnr_db, max_mere, min_sqnr_db):
    budget = ErrorBudget(max_mere, min_sqnr_db)
    assert budget.holds(mere, sqnr_db) == (not budget.missed(mere, sqnr_db))
    assert budget.holds(mere, sqnr_db) == (mere <= max_mere and sqnr_db >= min_sqnr_db)


def test_words():
    assert DEFAULT.missed(math.nan, 30) == ("MERE nan, budget 0.2",)
    assert DEFAULT.missed(0.5, 3.04, " on its 40 rows") == (
        "MERE 0.5 on its 40 rows, budget 0.2",
        "SQNR 3.0 dB on its 40 rows, budget 20",
    )


def test_options_and_the_probe_take_the_same_one():
    assert Options().error_budget == DEFAULT
    assert Options(max_mere=0.01, min_sqnr_db=35).error_budget == ErrorBudget(0.01, 35.0)
    assert probe(torch.nn.Linear(2, 2), max_mere=0.01)._observer.budget == ErrorBudget(0.01)
