"""What torch.compile returned, and what it was given."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch


def user_options(compiled: Any) -> tuple[str | None, dict[str, Any]] | None:
    """The `mode` and `options` a torch.compile result was made with; None if it is no torch.compile result."""
    wrapper = _backend_of(compiled)
    if wrapper is None or not hasattr(wrapper, "kwargs"):
        return None
    return wrapper.kwargs.get("mode"), dict(wrapper.kwargs.get("options") or {})


def _backend_of(compiled: Any) -> Any | None:
    """Follow a compiled module or function to torch's _TorchCompileWrapper, by `_torchdynamo_orig_backend`."""
    context = getattr(compiled, "dynamo_ctx", None)
    callback = getattr(context, "callback", None)
    if callback is None:
        function = getattr(compiled, "_compiled_call_impl", None) or compiled  # nn.Module.compile
        cells = getattr(function, "__closure__", None) or ()
        callback = next((c.cell_contents for c in cells if hasattr(c.cell_contents, "_torchdynamo_orig_backend")), None)
    while callback is not None and hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend
    return callback


def original_of(compiled: Any) -> Any:
    """The module or function that torch.compile wrapped; the module of a module's method, or under `torch.vmap`."""
    module = getattr(compiled, "_orig_mod", None)
    original = module if module is not None else getattr(compiled, "_torchdynamo_orig_callable", compiled)
    innermost = inspect.unwrap(original)
    owner = innermost if isinstance(innermost, torch.nn.Module) else getattr(innermost, "__self__", None)
    return owner if isinstance(owner, torch.nn.Module) else original


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a module is a torch.compile result, or was compiled in place by its `compile` method."""
    from torch._dynamo import OptimizedModule

    return isinstance(model, OptimizedModule) or model._compiled_call_impl is not None


def compile_calls(
    model: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], **options: Any
) -> Callable[[], None]:
    """Send a module's calls through `wrap(torch.compile(its call, **options))`, until the function returned is called.

    Dynamo never compiles the frames of torch's own modules: as a root they need a frame around them, in which they
    have the name that torch.compile gives them (torch._dynamo.external_utils.wrap_inline).
    """
    from torch._dynamo.trace_rules import check

    def around(fn: torch.nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: fn._call_impl(*args, **kwargs)

    if isinstance(model.forward, types.MethodType) and check(model.forward):
        compiled = torch.compile(around(model), **options)
    else:
        compiled = torch.compile(model._call_impl, **options)
    model._compiled_call_impl = wrap(compiled)
    return lambda: model.__dict__.pop("_compiled_call_impl", None)
