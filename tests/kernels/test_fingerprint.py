"""A write that a few fixed values miss is seen when its block's turn comes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from loka_compile.kernels.fingerprint import BLOCK, Fingerprint
from loka_compile.kernels.frozen import LOOK_EVERY
from loka_compile.kernels.providers.aten import frozen_mm

UNSAMPLED = 5
"""A place that is not among the values compared at every call, in a tensor of more than SAMPLES * 5 values."""


def looks_until_seen(values):
    return next((look for look in range(1, 100) if not values.same()), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(64, 100), (3,), (BLOCK,), (7, BLOCK)])
def test_every_value_is_seen_in_time(dtype, shape):
    tensor = torch.randint(-9, 9, shape).to(dtype)
    count, size = -(-tensor.numel() // BLOCK), tensor.numel()
    for place in {0, 1, size // 2, size - 1}:
        values = Fingerprint(tensor)
        assert all(values.same() for _ in range(2 * count))
        tensor.view(-1)[place] += 1
        assert looks_until_seen(values) <= count
        tensor.view(-1)[place] -= 1


def test_a_write_of_half_a_tensor_is_seen_at_once():
    for half in (slice(0, 50), slice(50, 100)):
        tensor = torch.randn(100, 96)
        values = Fingerprint(tensor)
        tensor[half] *= 2
        assert not values.same(every=100)


def test_one_call_of_so_many_looks():
    tensor = torch.zeros(1000)
    values = Fingerprint(tensor)
    tensor[UNSAMPLED] = 1
    assert [values.same(every=3) for _ in range(6)] == [True, True, False, True, True, False]


@pytest.mark.parametrize("like", [lambda x: x.t(), lambda x: x.unsqueeze(0).expand(3, -1, -1), lambda x: x[:, 2:7]])
def test_views(like):
    tensor = torch.randn(8, 8)
    values = Fingerprint(like(tensor))
    assert values.same()
    tensor[:, 4] += 1
    assert not values.same()


@pytest.mark.parametrize(
    "tensor", [torch.empty(0), torch.empty(3, 0), torch.zeros(()), torch.zeros(3, dtype=torch.complex128)]
)
def test_shapes_and_dtypes_that_no_weight_has(tensor):
    assert all(Fingerprint(tensor).same() for _ in range(3))


def test_nothing_is_kept_alive():
    tensor = torch.randn(100)
    values, there = Fingerprint(tensor), weakref.ref(tensor.untyped_storage())
    del tensor
    gc.collect()
    assert there() is None and values is not None


@torch.no_grad()
def test_a_frozen_weight_is_quantized_anew_in_time():
    weight = torch.nn.Parameter(torch.randn(100, 96))
    a = torch.randn(4, 96).bfloat16()
    before = frozen_mm(a, weight, True)
    weight.data.view(-1)[UNSAMPLED] += 1  # neither a version nor the few values tell
    blocks = -(-weight.numel() // BLOCK)
    outs = [frozen_mm(a, weight, True) for _ in range(blocks * LOOK_EVERY)]
    wanted = a @ weight.detach().bfloat16().t()
    assert torch.equal(outs[0], before) and torch.equal(outs[-1], wanted) and not torch.equal(before, wanted)
