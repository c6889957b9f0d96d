"""The backend end to end: whatever model and mode it meets, the result is right or the error is clear.

Most tests run the rewritten graphs op by op (`op_by_op`): all of a compilation but Inductor's code generation. Those
that take `generated` run real generated code.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded(fresh_dynamo):
    torch.manual_seed(0)
