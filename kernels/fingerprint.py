"""Finding writes that a tensor's version counter misses: blocks of its values are compared now and then, in turn.

Comparing the same few values at every call finds most writes at once, but never a write that leaves them alone. Blocks
take turns, so such a write is found in the end: in a weight of a million values after at most 1,000 looks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Values compared in one look."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Blocks:
    """The sum of each block's bits. Integer sums are exact. It holds no tensor."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}
        self._turn = self._calls = 0

    def learn(self, tensor: Tensor) -> None:
        """Read the whole tensor once and keep its sums. A block that was not learned is learned at its first look."""
        bits = _bits(tensor)
        whole = len(bits) // BLOCK
        sums = bits[: whole * BLOCK].view(whole, BLOCK).sum(1, dtype=torch.int64).tolist()
        self._sums = dict(enumerate(sums)) | ({whole: _sum(bits[whole * BLOCK :])} if len(bits) % BLOCK else {})

    def same(self, tensor: Tensor, every: int = 1) -> bool:
        """Whether the next block is unchanged. every: look at one call of so many; the others return True."""
        self._calls += 1
        if self._calls % every:
            return True
        bits = _bits(tensor)
        count = -(-len(bits) // BLOCK)
        if not count:
            return True
        self._turn = (self._turn + 1) % count
        found = _sum(bits[self._turn * BLOCK : (self._turn + 1) * BLOCK])
        return self._sums.setdefault(self._turn, found) == found


def _sum(bits: Tensor) -> int:
    return int(bits.sum(dtype=torch.int64))


@torch.no_grad()
def _bits(tensor: Tensor) -> Tensor:
    """The tensor's values as integers, as they lie; empty if its memory is not in one piece."""
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    flat = tensor.detach().permute(order)
    if not flat.is_contiguous() or tensor.element_size() not in BITS or tensor.is_complex():
        return torch.empty(0, dtype=torch.int32)
    return flat.reshape(-1).view(BITS[tensor.element_size()])
