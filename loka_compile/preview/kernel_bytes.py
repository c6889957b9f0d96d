"""Every kernel that Inductor generates for a preview carries the bytes that Inductor's scheduler knows it moves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from loka_compile.preview.gpu import Gpu

Meta = dict[str, Any]


def with_bytes(gpu: Gpu, original: Any) -> Any:
    """TritonKernel.inductor_meta_per_kernel, since torch 2.13."""
    return lambda kernel: _with_bytes(kernel, original(kernel))


def with_bytes_of_old(gpu: Gpu, original: Any) -> Any:
    """TritonKernel.inductor_meta_common, a class method: before torch 2.13 what a kernel says of itself goes through no
    function of its own but this. Given that it has one, it stays as it is."""
    has_its_own = hasattr(original.__self__, "inductor_meta_per_kernel")
    return classmethod(original.__func__) if has_its_own else _OfKernelOrClass(original)


class _OfKernelOrClass:
    """Called on a kernel, or on its class, which moves no bytes."""

    def __init__(self, original: Callable[[], Meta]) -> None:
        self._original = original

    def __get__(self, kernel: Any, owner: type) -> Callable[[], Meta]:
        return self._original if kernel is None else lambda: _with_bytes(kernel, self._original())


def _with_bytes(kernel: Any, meta: Meta) -> Meta:
    with contextlib.suppress(Exception):  # not every kind of kernel has an estimate
        meta.setdefault("kernel_num_gb", kernel.estimate_kernel_num_bytes() / 1e9)
    return meta
