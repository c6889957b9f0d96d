"""Clocks whose times a test makes up."""

from __future__ import annotations

import pytest

from loka_compile.dispatch import candidates, choose
from loka_compile.kernels.providers import PROVIDERS
from tests.dispatch.made_up import made_up_clock


@pytest.fixture
def times(monkeypatch):
    """Measured times made up: `keep` and one a `recipe/provider`, in microseconds."""
    made_up = {"keep": 100.0}
    only = {name: PROVIDERS[name] for name in ("aten", "emulated")}
    monkeypatch.setattr(candidates, "PROVIDERS", only)
    monkeypatch.setattr(type(only["aten"]), "no_use", lambda *_: "")  # whatever processor this is
    clock = made_up_clock(lambda sizes: made_up["keep"], lambda fit, sizes: made_up[str(fit.candidate)], made_up)
    monkeypatch.setattr(choose, "clock_of", clock)
    return made_up


@pytest.fixture
def times_of_rows(monkeypatch):
    """Times made up from the number of rows: keeping costs a microsecond a row, int8 100 and a tenth a row."""
    made_up = {"keep": lambda rows: 1.0 * rows, "int8_rowwise": lambda rows: 100 + 0.1 * rows, "lost": lambda *_: ""}
    aten = candidates.PROVIDERS["aten"]
    monkeypatch.setattr(candidates, "PROVIDERS", {"aten": aten})
    monkeypatch.setattr(type(aten), "no_use", lambda *_: "")  # whatever processor this is
    clock = made_up_clock(
        lambda sizes: made_up["keep"](sizes.M),
        lambda fit, sizes: made_up[fit.recipe.name](sizes.M),
        lost=lambda fit, sizes: made_up["lost"](fit, sizes),
    )
    monkeypatch.setattr(choose, "clock_of", clock)
    return made_up
