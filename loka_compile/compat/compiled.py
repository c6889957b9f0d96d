"""The callable that torch.compile returned, and the model it was given."""

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


def backend_name(compiled: Any) -> str:
    """The name of the backend that torch.compile was given; "" if this is no torch.compile result."""
    return str(getattr(_backend_of(compiled), "compiler_name", ""))


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


def compile_apart(
    function: Callable[..., Any], *, recompile_limit: int | None = None, **options: Any
) -> Callable[..., Any]:
    """torch.compile whose compilations do not count against those that others make of the same code, nor theirs
    against these (isolate_recompiles, since torch 2.13).

    Before, entries of all backends count together, so that this one's limit comes on top of the user's, while it is
    called. Code that has reached the user's limit before runs as it is.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return torch.compile(function, recompile_limit=recompile_limit, isolate_recompiles=True, **options)
    from torch._dynamo import config

    compiled = torch.compile(function, **options)

    def call(*args: Any, **kwargs: Any) -> Any:
        more = config.recompile_limit + (recompile_limit or config.recompile_limit)
        with config.patch(recompile_limit=more):
            return compiled(*args, **kwargs)

    return call


def compile_calls(
    model: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], **options: Any
) -> Callable[[], None]:
    """Send a module's calls through `wrap(compile_apart(its call, **options))`, until the function returned is called.

    Dynamo never compiles the frames of torch's own modules: as a root they need a frame around them, in which they
    have the name that torch.compile gives them (torch._dynamo.external_utils.wrap_inline).
    """
    from torch._dynamo.trace_rules import check

    def around(fn: torch.nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: fn._call_impl(*args, **kwargs)

    if isinstance(model.forward, types.MethodType) and check(model.forward):
        compiled = compile_apart(around(model), **options)
    else:
        compiled = compile_apart(model._call_impl, **options)
    model._compiled_call_impl = wrap(compiled)
    return lambda: model.__dict__.pop("_compiled_call_impl", None)
