"""The private functions of torch and Inductor that a preview only calls. Seen with torch 2.11 to 2.14.

What it replaces stands in torch_patches.py; nothing else in loka_compile/preview touches a private name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def fake_mode() -> Any:
    """The FakeTensorMode all tensors of a preview live in."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Inductor's and AOTAutograd's configuration for code that is generated to be read: no caches, no worker processes,
    nothing timed, no assertions on memory there is not."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config

    patches = {
        "fx_graph_cache": False,
        "fx_graph_remote_cache": False,
        "compile_threads": 1,
        "size_asserts": False,
        "alignment_asserts": False,
        "nan_asserts": False,
        "triton.cudagraphs": False,
        "autotune_local_cache": False,
        "triton.autotune_at_compile_time": False,
        "use_static_triton_launcher": False,
        "benchmark_harness": False,
        "shape_padding": False,  # whether it pays is timed
    }
    known = config.get_config_copy()
    with (
        config.patch({name: value for name, value in patches.items() if name in known}),
        functorch_config.patch(enable_autograd_cache=False),
    ):
        yield


def custom_op_body(func: Any) -> Callable[..., Any] | None:
    """The function that a torch.library.custom_op or triton_op runs on CUDA (torch._library.custom_ops.OPDEFS)."""
    from torch._library.custom_ops import OPDEFS

    definition = OPDEFS.get(func._schema.name)
    if definition is None:
        return None
    return definition._backend_fns.get("cuda") or definition._backend_fns.get(None) or definition._init_fn


def grid_of(tuner: Any, config: Any, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Programs of one of Inductor's kernels (torch._inductor.runtime.triton_heuristics.GridExpr)."""
    from torch._inductor.runtime.triton_heuristics import GridExpr

    numbers = {name: value for name, value in values.items() if isinstance(value, int)}
    scope = {**tuner.triton_meta.get("constants", {}), **numbers, **config.kwargs}
    return tuple(int(x) for x in GridExpr.from_meta(tuner.inductor_meta, config).eval_slow(scope))


def graph_breaks() -> dict[str, int]:
    """Why Dynamo broke graphs since the last reset, and how often (torch._dynamo.utils.counters)."""
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])


def reset() -> None:
    """Forget every compilation, and the reasons of graph breaks."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()


def no_modes() -> Any:
    """Outside the fake mode and the recorder (torch.utils._python_dispatch)."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def lookup_backend(name: str) -> Callable[..., Any]:
    """A torch.compile backend by name (torch._dynamo.lookup_backend)."""
    import torch._dynamo

    return torch._dynamo.lookup_backend(name)


def traceable_parts(tensor: torch.Tensor) -> tuple[list[str], Any] | None:
    """A tensor subclass's inner tensors by name, and what else it is made of; None for a plain tensor."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return tensor.__tensor_flatten__() if is_traceable_wrapper_subclass(tensor) else None
