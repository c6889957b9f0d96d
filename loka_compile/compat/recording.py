"""Which ATen operators a torch function calls, and in which region (gradients, autocast, inference mode) it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loka_compile.compat.fakes import is_fake

_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, eq=False)
class AtenCall:
    """One call of an ATen (or custom) operator: the operator with its overload, what it was given, what it gave."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


@functools.cache
def _recorder() -> Any:
    from torch._subclasses.schema_check_mode import SchemaCheckMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(SchemaCheckMode):
        """Sees operators before autograd and autocast take them apart: `linear` is one call.

        Of the modes that torch lets onto the PreDispatch key, SchemaCheckMode is the one that changes nothing
        (torch._ops._set_mode_pre_dispatch, seen with torch 2.13).
        """

        supports_higher_order_operators = True

        def __init__(self) -> None:
            TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
            self.calls: list[AtenCall] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with _as_in_eager_mode(func):
                out = func(*args, **(kwargs or {}))
            self.calls.append(AtenCall(func, tuple(args), dict(kwargs or {}), out))
            return out

    return Recorder


def _as_in_eager_mode(op: Any) -> contextlib.AbstractContextManager[Any]:
    """Around an operator of which PyTorch has another one in Python, that does not give the same memory.

    Dropout that is off gives its input back, and in Python a copy of it (torch._decomp.decompositions.dropout, the only
    such one of torch 2.13's 47 operators that are written in Python above autograd).
    """
    from torch._dispatch.python import no_python_dispatcher

    return no_python_dispatcher() if op is torch.ops.aten.dropout.default else contextlib.nullcontext()


@contextlib.contextmanager
def recording(fakes: Sequence[Any]) -> Iterator[list[AtenCall]]:
    """Around torch functions on fake values of one mode: the operators they call arrive in the list, in order.

    Symbols that operators make for sizes that depend on data are dropped (ShapeEnv.ignore_fresh_unbacked_symbols,
    seen with torch 2.13). The state that nodes may switch (gradients, autocast) is put back at the end.
    """
    from torch._dispatch.python import enable_python_dispatcher

    mode = next((fake.fake_mode for fake in fakes if is_fake(fake)), None)
    shape_env = getattr(mode, "shape_env", None)
    fresh = shape_env.ignore_fresh_unbacked_symbols() if shape_env is not None else contextlib.nullcontext()
    recorder, before = _recorder()(), region_here()
    with inside(before), fresh, mode or contextlib.nullcontext(), enable_python_dispatcher(), recorder:
        yield recorder.calls


@dataclass(frozen=True)
class Region:
    """The state that changes what an operator computes, or whether it is differentiated.

    autocast: for each device type whether it is on, and to which dtype it casts.
    """

    grad: bool
    inference: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]


def region_here() -> Region:
    autocast = tuple((torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in _DEVICES)
    return Region(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)


@contextlib.contextmanager
def inside(region: Region) -> Iterator[None]:
    """Run in this region; the one before comes back, whatever was switched meanwhile."""
    before, cache = region_here(), torch.is_autocast_cache_enabled()
    with torch.inference_mode(region.inference), torch.set_grad_enabled(region.grad):
        _set_autocast(region)
        torch.set_autocast_cache_enabled(False)  # a cast that is kept would be of a fake weight
        try:
            yield
        finally:
            _set_autocast(before)
            torch.set_autocast_cache_enabled(cache)


def _set_autocast(region: Region) -> None:
    for device, (enabled, dtype) in zip(_DEVICES, region.autocast, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
