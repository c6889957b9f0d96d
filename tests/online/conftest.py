"""A folder of the test's own for what is kept, and nothing counted yet."""

from __future__ import annotations

import pytest
from torch._dynamo.utils import counters


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    counters.clear()
    return tmp_path
