"""How loka::triton_gemm is launched: scalings told by their shapes, tiles, parts of a contraction, and specimens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.gemm.triton_gemm_launch import configuration, scalings, specimens
from loka_compile.spec.chips import CHIPS


def test_scaling_by_shape():
    a, b, one = torch.empty(3, 40, 300), torch.empty(3, 300, 200), torch.empty(1)
    row, block = torch.empty(3, 40, 1), torch.empty(3, 40, 3)
    column, tile = torch.empty(3, 1, 200), torch.empty(3, 3, 2)
    assert scalings(a, None, b, None) == ("none", "none")
    assert scalings(a, row, b, one) == ("row", "tensor")
    assert scalings(a, row, b, column) == ("row", "row")
    assert scalings(a, block, b, tile) == ("block", "block")
    for left, right in ((row, tile), (block, column), (block, one), (torch.empty(40, 1), column), (row, row)):
        assert scalings(a, left, b, right) is None
    short, other = a[..., :100], b[:, :100]
    assert scalings(short, row, other, column) == ("row", "row")
    assert scalings(short, row, other, tile[:, :1]) == ("block", "block")


@settings(deadline=None)
@given(
    m=st.integers(1, 2**18),
    n=st.integers(1, 4096),
    k=st.integers(0, 2**18),
    batch=st.integers(1, 64),
    itemsize=st.sampled_from([1, 2]),
    kind=st.sampled_from(["", "twice", "adding"]),
    arch=st.sampled_from(list(CHIPS)),
)
def test_every_part_of_a_contraction_has_steps(m, n, k, batch, itemsize, kind, arch):
    bm, bn, bk, warps, _, splits = configuration(m, n, k, batch, itemsize, kind, arch)
    steps = -(-k // bk)
    assert splits == 1 or (splits - 1) * -(-steps // splits) < steps
    assert bm * bn * splits <= 256 * 128 * splits and warps in (4, 8)
    if itemsize == 1:
        assert bk == 128  # a step along K has one scale, a tile of columns too
    assert splits == 1 or -(-m // bm) * -(-n // bn) * batch * splits <= CHIPS[arch].sms


@pytest.mark.parametrize(("m", "least"), [(1024, 100), (4096, 100), (65536, 1000)])
def test_small_batches_fill_the_chip(m, least):
    bm, bn, *_ = configuration(m, 512, 512, 1, 1, "", "sm_90")
    assert m // bm * 512 // bn >= least


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    listed = specimens(arch)
    assert len({each.name for each in listed}) == len(listed)
    for each in listed:
        tensors = [getattr(value, "base", value) for value in each.launch.args.values()]
        tensors = [value for value in tensors if torch.is_tensor(value)]
        assert all(value.is_meta for value in tensors)
        assert each.launch.nbytes >= sum(value.numel() * value.element_size() for value in tensors)
