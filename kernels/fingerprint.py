"""Finding writes that a tensor's version counter misses, such as those through `.data`.

A few values are compared at every call, which finds most writes at once, but never a write that leaves them alone. So
blocks of all values are compared too, now and then and in turn: in a weight of a million values such a write is found
after at most 1,000 looks.

The values are read where they lie, by numpy: torch would take ten times as long, at every call of every product.
"""

from __future__ import annotations

import ctypes

import numpy
from torch import Tensor

SAMPLES = 64
"""Values compared at every call."""
BLOCK = 1024
"""Values compared in one look."""
BITS = {1: numpy.int8, 2: numpy.int16, 4: numpy.int32, 8: numpy.int64}


class Fingerprint:
    """What the memory of a CPU tensor holds: some of its values, and the sum of each block's bits, which is exact.

    It keeps neither tensor nor memory alive. Ask it only while the tensor is known to lie where it lay.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._bits = _memory(tensor)
        self._spread = self._bits[:: len(self._bits) // SAMPLES | 1]  # an odd step visits all columns of an even matrix
        self._sample = self._spread.tobytes()
        is_dense = 0 < len(self._bits) == tensor.numel()  # else others' values lie between its own
        starts = range(0, len(self._bits), BLOCK)
        self._sums = numpy.add.reduceat(self._bits, starts, dtype=numpy.int64).tolist() if is_dense else []
        self._turn = self._calls = 0

    def same(self, every: int = 1) -> bool:
        """Whether the few values, and the block whose turn it is, are unchanged. every: calls between two blocks."""
        if self._spread.tobytes() != self._sample:
            return False
        self._calls += 1
        if self._calls % every or not self._sums:
            return True
        self._turn = (self._turn + 1) % len(self._sums)
        return self._sum(self._turn) == self._sums[self._turn]

    def _sum(self, block: int) -> int:
        return int(self._bits[block * BLOCK : (block + 1) * BLOCK].sum(dtype=numpy.int64))


def _memory(tensor: Tensor) -> numpy.ndarray:
    """The memory from the tensor's first value to its last, as integers."""
    if not tensor.numel() or not tensor.data_ptr():  # a wrapper around other tensors has no memory of its own
        return numpy.empty(0, numpy.int8)
    width = tensor.element_size()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_char * ((last + 1) * width)).from_address(tensor.data_ptr())
    return numpy.frombuffer(memory, BITS[min(width, 8)])
