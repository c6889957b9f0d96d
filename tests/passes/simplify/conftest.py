"""Rates under which whatever a pass can do pays."""

from __future__ import annotations

import pytest

from loka_compile.passes.simplify import _rates as rates
from tests.passes.exact import FREE


@pytest.fixture
def free(monkeypatch):
    """Every split pays."""
    monkeypatch.setattr(rates, "CPU", rates.Rates(**FREE))
