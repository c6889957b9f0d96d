"""The storage gives all that was written, in order, or the last alone."""

import pytest
import torch

from examples.lattice.networks.storage import Storage


def test_gives_everything_in_the_order_of_writing():
    storage, a, b = Storage(), torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    storage.write("a", a)
    storage.write("b", b)
    assert torch.equal(storage.read(), torch.cat([a, b], dim=1))
    with pytest.raises(KeyError, match="a has been written already"):
        storage.write("a", b)


def test_without_extension_the_last_alone():
    storage, b = Storage(extended=False), torch.randn(2, 1, 4)
    storage.write("a", torch.randn(2, 3, 4))
    storage.write("b", b)
    assert torch.equal(storage.read(), b)
