"""Records: what went in comes out, and bytes that are anything else are misses."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.lattice.ktap.record import decode, encode, key, nothing

EMBEDDING, LOGITS = torch.tensor([[0.5, -2.0, 1e9]]), torch.tensor([[1.25, -3.0]])
[VALUE] = encode(EMBEDDING, LOGITS, [50.0])


def test_what_went_in_comes_out():
    found, garbage = decode([VALUE, None], 3, 2, [51.0, 51.0])
    assert found.hit.tolist() == [True, False] and garbage == 0
    assert found.embedding.tolist() == [[0.5, -2.0, 65504.0], [0, 0, 0]] and found.logits.tolist() == [
        [1.25, -3],
        [0, 0],
    ]
    assert found[torch.tensor([1])].hit.tolist() == [False]


def test_what_was_computed_at_the_impression_or_later_is_a_miss():
    found, garbage = decode([VALUE] * 3, 3, 2, [50.0, 49.0, 50.001])
    assert found.hit.tolist() == [False, False, True] and garbage == 0


@given(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, len(VALUE) - 1), st.integers(1, 255))))
def test_garbage_is_a_miss_and_counted(given_):
    if isinstance(given_, tuple):  # one byte is wrong
        place, change = given_
        given_ = VALUE[:place] + bytes([VALUE[place] ^ change]) + VALUE[place + 1 :]
    found, garbage = decode([given_], 3, 2, [99.0])
    assert garbage == 1 and not found.hit[0] and not found.embedding.any()


def test_other_shapes_and_numbers_that_are_none_are_garbage():
    assert decode([VALUE], 2, 2, [99.0])[1] == 1
    other = encode(torch.zeros(1, 1), torch.zeros(1, 3), [1.0])  # as many bytes, cut otherwise
    assert len(other[0]) == len(VALUE) and decode(other, 3, 2, [99.0])[1] == 1
    assert decode(encode(torch.tensor([[torch.nan] * 3]), LOGITS, [1.0]), 3, 2, [99.0])[1] == 1
    assert decode(encode(EMBEDDING, torch.tensor([[torch.inf, 0]]), [1.0]), 3, 2, [99.0])[1] == 1


def test_keys_and_misses():
    assert key(3, 4) == b"ktap:teacher:3:4" != key(34, 4)
    assert nothing(2, 3, 1).embedding.shape == (2, 3) and not nothing(2, 3, 1).hit.any()
