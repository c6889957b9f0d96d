"""A clock whose times a test makes up."""

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
