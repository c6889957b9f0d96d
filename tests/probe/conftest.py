"""The same draws in every run."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def seeded(fresh_dynamo):
    torch.manual_seed(0)
