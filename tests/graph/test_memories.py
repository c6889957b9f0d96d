"""Storages as numbers: views share one, a copy sees on its own, what hides its memory has none."""

import pytest
import torch

from loka_compile.graph.memories import Memories


def test_views_have_one_number_and_others_their_own():
    memories = Memories()
    x, y = torch.randn(4, 4), torch.randn(4)
    (own,) = memories.of(x)
    assert memories.of((x.t(), [x[0], {"a": x.view(-1)}])) == {own}
    assert memories.of([x, y, 3, None]) == {own, own + 1}


def test_a_storage_that_died_gives_no_number_away():
    memories = Memories()
    seen = [memories.of(torch.randn(8)) for _ in range(16)]
    assert len(frozenset.union(*seen)) == 16


def test_a_copy_knows_what_was_seen_and_sees_on_by_itself():
    memories = Memories()
    x, y, z = torch.randn(2), torch.randn(2), torch.randn(2)
    before = memories.of(x)
    other = memories.copy()
    memories.of(y)
    assert other.of(x) == before and other.of(z) == {1}


def test_a_tensor_without_storage_is_refused():
    with pytest.raises(NotImplementedError):
        Memories().of(torch.eye(3).to_sparse())
