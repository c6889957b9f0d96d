"""Inside a worker on a machine that has the GPU: what each kernel of a step takes, from torch's profiler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from loka_compile.preview import sides, torch_calls

WARM_UP, STEPS = 5, 11


def gpu_here(target: str) -> str:
    """The name of this machine's GPU if it is of the target's kind, else ""."""
    if not torch.cuda.is_available():
        return ""
    name = torch.cuda.get_device_name()
    return name if target.lower() in name.lower().replace(" ", "") else ""


def run(
    name: str,
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: str,
    training: bool,
    plan: Any,
    options: Mapping[str, Any],
) -> list[tuple[str, float]]:
    """(kernel, microseconds) in launch order, medians of STEPS steps after WARM_UP. Raises what the model raises."""
    torch_calls.reset()
    own, inputs, keywords = on_device(copy.deepcopy(model)), on_device(args), on_device(dict(kwargs))
    if isinstance(own, nn.Module):
        own.train(training)
    own, _ = sides.converted(name, own, training)
    backend = sides.backend(name, plan, target, [], options)
    call = own if name == "eager" else torch.compile(own, backend=backend, dynamic=False)
    for _ in range(WARM_UP):
        sides.step(call, own, inputs, keywords, training)
    torch.cuda.synchronize()
    return medians([profiled(lambda: sides.step(call, own, inputs, keywords, training)) for _ in range(STEPS)])


def profiled(call: Callable[[], None]) -> list[tuple[str, float]]:
    """The kernels of one call by start; copies and fills of memory are none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return in_order(
        [
            (event.name, event.time_range.start, event.time_range.elapsed_us())
            for event in found.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
    )


def in_order(events: Sequence[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """(name, µs) of (name, start, µs), without copies and fills."""
    kernels = [event for event in events if not event[0].startswith(("Memcpy", "Memset"))]
    return [(name, us) for name, _, us in sorted(kernels, key=lambda event: event[1])]


def medians(steps: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Kernel by kernel, over the steps that ran what most of them ran."""
    names = [tuple(name for name, _ in step) for step in steps]
    usual = max(names, key=names.count)
    same = [step for step, ran in zip(steps, names, strict=True) if ran == usual]
    return [(name, median(step[place][1] for step in same)) for place, name in enumerate(usual)]


def on_device(value: Any) -> Any:
    if isinstance(value, nn.Module | torch.Tensor):
        return value.to("cuda")
    if isinstance(value, Mapping):
        return {key: on_device(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(on_device(item) for item in value)
    return value
