"""Triton's interpreter with a GPU's maximum and minimum: a NaN loses to a number.

Until Triton 3.8 the interpreter let it win, so a kernel that makes a number of NaN passed its tests.
"""

from __future__ import annotations

import numpy as np
import pytest
from triton.runtime.interpreter import InterpreterBuilder


@pytest.fixture(autouse=True, scope="session")
def maximum_of_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        for name, operator in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
            patch.setattr(
                InterpreterBuilder, name, lambda self, a, b, operator=operator: self.binary_op(a, b, operator)
            )
        yield
