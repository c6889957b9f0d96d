"""For graphs of a GPU on a machine without one: plans as if it were here, and the same draws in every run."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels.providers import triton


@pytest.fixture
def with_fp8(monkeypatch):
    """Planned as on a GPU that has FP8; there is none here to ask."""
    monkeypatch.setattr(triton, "_fp8_here", lambda: True)


@pytest.fixture
def seeded():
    """What 16 bits lose in a sum differs by as much as the bound from one draw to the next."""
    torch.manual_seed(0)
