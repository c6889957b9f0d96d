"""Verdicts kept in a folder of the test's own."""

from __future__ import annotations

import pytest

from tests.trial.racing import forget


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path
    forget()
