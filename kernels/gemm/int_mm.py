"""Products of bytes with int32 sums, exact on every processor: PyTorch's `_int_mm` made safe."""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels.quantize.quantize import INTEGERS
from loka_compile.spec.processor import processor


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """torch._int_mm of a (M, K), int8 or on CPUs uint8, and b (K, N), int8: int32 (M, N), for all sizes and processors.

    The CPU kernel misreads the strides of a matrix with a dimension of 1 and returns wrong numbers (seen with torch
    2.13: M = 1 and strides (1, 1)), so such a dimension is padded to 2.
    """
    m, k, n = (int(compat.guard_free(size == 1)) for size in (*a.shape, b.shape[1]))
    if not (m or k or n):
        return _exact_int_mm(a, b)
    a = torch.nn.functional.pad(a, (0, k, 0, m)) if m or k else a
    b = torch.nn.functional.pad(b, (0, n, 0, k)) if n or k else b  # b is a weight: for a single row it is not copied
    return _exact_int_mm(a, b)[: a.shape[0] - m, : b.shape[1] - n]


def goes_by_parts(a: Tensor) -> bool:
    """Whether a product with `a` takes two calls of torch._int_mm, because one would saturate on this processor."""
    return a.is_cpu and a.dtype in INTEGERS and processor().int_mm_saturates


def _exact_int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Without VNNI pairs of products are added in 16 bits, which 8-bit weights overflow. The trick: b = 2 * (b >> 1) +
    (b & 1), and each part is small enough."""
    if _is_shifted(a):
        return _exact_int_mm((a ^ 128).view(torch.int8), b) + 128 * b.sum(0, dtype=torch.int32)  # a ^ 128 is a - 128
    if goes_by_parts(a):
        return 2 * torch._int_mm(a, b >> 1) + torch._int_mm(a, b & 1)
    return torch._int_mm(a, b)


def _is_shifted(a: Tensor) -> bool:
    """Whether `a` is made int8 first, because torch._int_mm takes no uint8 here."""
    return a.is_cpu and a.dtype == torch.uint8 and not compat.cpu_int_mm_takes_uint8()


def _as_it_is(a: Tensor) -> bool:
    """Whether torch._int_mm takes `a` and is exact."""
    return not goes_by_parts(a) and not _is_shifted(a)


def int_mm_into(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """int_mm into `out`: (M, N) int32, contiguous. One row is not padded but read by strides that say how it lies."""
    (m, k), n = a.shape, b.shape[1]
    if (m > 1 and k > 1 and n > 1) and _as_it_is(a):
        return torch._int_mm(a, b, out=out)
    if m == 1 < min(k, n) and a.stride(1) == 1 and a.is_cpu and _as_it_is(a):
        return torch._int_mm(a.as_strided((1, k), (k, 1)), b, out=out)
    return out.copy_(int_mm(a, b))
