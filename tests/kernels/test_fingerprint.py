"""A write that a few fixed values miss is seen when its block's turn comes."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels import frozen
from loka_compile.kernels.fingerprint import BLOCK, Blocks
from loka_compile.kernels.frozen import LOOK_EVERY
from loka_compile.kernels.providers.aten import frozen_mm


def written_unseen(tensor):
    """A value that is neither a training step's nor a version's, and that no fixed sample has."""
    tensor.data.view(-1)[5] += 1


def looks_until_seen(blocks, tensor):
    return next((look for look in range(1, 100) if not blocks.same(tensor)), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(64, 100), (3,), (BLOCK,), (7, BLOCK)])
def test_every_value_is_seen_in_time(dtype, shape):
    tensor = torch.randint(-9, 9, shape).to(dtype)
    count, size = -(-tensor.numel() // BLOCK), tensor.numel()
    for place in {0, 1, size // 2, size - 1}:
        blocks = Blocks()
        blocks.learn(tensor)
        assert all(blocks.same(tensor) for _ in range(2 * count))
        tensor.view(-1)[place] += 1
        assert looks_until_seen(blocks, tensor) <= count
        tensor.view(-1)[place] -= 1


def test_what_was_not_learned_is_taken_as_it_is_at_its_first_look():
    tensor, blocks = torch.randn(4, BLOCK), Blocks()
    assert all(blocks.same(tensor) for _ in range(4))
    tensor[2, 7] += 1
    assert looks_until_seen(blocks, tensor) <= 4


def test_one_call_of_so_many_looks():
    tensor, blocks = torch.zeros(10), Blocks()
    blocks.learn(tensor)
    tensor[3] = 1
    assert [blocks.same(tensor, every=3) for _ in range(6)] == [True, True, False, True, True, False]


@pytest.mark.parametrize("like", [lambda x: x.t(), lambda x: x.unsqueeze(0).expand(3, -1, -1), lambda x: x[:, ::2]])
def test_views(like):
    tensor, blocks = torch.randn(8, 8), Blocks()
    blocks.learn(like(tensor))
    assert blocks.same(like(tensor))
    assert Blocks().same(torch.empty(0))


@torch.no_grad()
def test_a_frozen_weight_is_quantized_anew_in_time():
    weight = torch.nn.Parameter(torch.randn(100, 96))
    a = torch.randn(4, 96).bfloat16()
    before = frozen_mm(a, weight, True)
    sampled = frozen._bits(weight, frozen._places(weight))
    written_unseen(weight)
    assert frozen._bits(weight, frozen._places(weight)) == sampled
    blocks = -(-weight.numel() // BLOCK)
    outs = [frozen_mm(a, weight, True) for _ in range(blocks * LOOK_EVERY)]
    wanted = a @ weight.detach().bfloat16().t()
    assert torch.equal(outs[0], before) and torch.equal(outs[-1], wanted) and not torch.equal(before, wanted)
