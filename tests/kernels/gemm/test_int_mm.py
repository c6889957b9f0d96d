"""Products of bytes where torch._int_mm takes int8 alone, as on CPUs up to torch 2.11."""

from __future__ import annotations

import pytest
import torch

from loka_compile import compat
from loka_compile.kernels.gemm.int_mm import int_mm, int_mm_into


@pytest.mark.parametrize(("m", "k", "n"), [(5, 64, 7), (1, 33, 8), (4, 1, 3), (6, 40, 1)])
def test_uint8_is_shifted_to_int8_and_stays_exact(monkeypatch, m, k, n):
    monkeypatch.setattr(compat, "cpu_int_mm_takes_uint8", lambda: False)
    a = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8)
    a[0], b[:, 0] = 255, -128  # the largest sums there are
    expected = (a.long() @ b.long()).int()
    assert torch.equal(int_mm(a, b), expected)
    out = torch.empty(m, n, dtype=torch.int32)
    assert torch.equal(int_mm_into(out, a, b), expected) and torch.equal(out, expected)
