"""Tensors that are referred to weakly may still be swapped."""

from __future__ import annotations

import gc

import torch
from torch import nn

from loka_compile.compat import is_memory_of, memory_of


def test_a_reference_lives_as_long_as_the_memory():
    weight, died = nn.Parameter(torch.randn(4, 4)), []
    memory = memory_of(weight, died.append)
    gc.collect()
    assert is_memory_of(memory, weight) and is_memory_of(memory, weight.detach()) and not died
    del weight
    assert memory() is None and died == [memory]


def test_other_memory_is_noticed():
    weight = nn.Parameter(torch.randn(4, 4))
    memory = memory_of(weight)
    weight.data = torch.randn(4, 4)
    assert memory() is None and not is_memory_of(memory, weight)


def test_it_goes_with_what_is_swapped():
    mine, its = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    memory = memory_of(mine)
    torch.utils.swap_tensors(mine, its)
    assert is_memory_of(memory, its) and not is_memory_of(memory, mine)


def test_a_tensor_without_memory_of_its_own():
    sparse = torch.eye(4).to_sparse()
    memory = memory_of(sparse)
    assert is_memory_of(memory, sparse) and not is_memory_of(memory, torch.eye(4).to_sparse())
    del sparse
    assert memory() is None
