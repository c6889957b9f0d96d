"""Inside the worker: one way to run the model, compiled for the absent GPU and recorded, as JSON can hold it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from loka_compile import compat
from loka_compile.compat.instead import instead
from loka_compile.kernels import frozen as once
from loka_compile.kernels.launch import Launch
from loka_compile.preview import absent_gpu, torch_calls
from loka_compile.preview.record import Recorder, nbytes

NARROWEST = 64
"""torchao converts linears with both sides at least this wide and multiples of 16: others its kernels refuse."""


def run(
    name: str,
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: str,
    training: bool,
    plan: Any = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    compiled: dict[Any, Any] | None = None,
    products_only: bool = False,
) -> dict[str, Any]:
    """One side by its name. model and inputs: on the CPU or on `meta`; they are copied. Raises what the model does.

    plan, options: loka's. compiled, products_only: see record.py.
    """
    recorder = Recorder(compiled)
    with absent_gpu.absent_gpu(target, recorder) as gpu, _own_launches(recorder):
        torch_calls.reset()
        fake = torch_calls.fake_mode()
        with fake:
            own = on_gpu(model, {})
            inputs, keywords = on_gpu(args, {}), on_gpu(dict(kwargs), {})
            if isinstance(own, nn.Module):
                own.train(training)
            own, note = converted(name, own, training)
        graphs: list[int] = []
        call = (
            own
            if name == "eager"
            else torch.compile(own, backend=backend(name, plan, target, graphs, options), dynamic=False)
        )
        with (
            torch_calls.settings(),
            fake,
            _module_names(own, recorder) if name == "eager" else contextlib.nullcontext(),
        ):
            step(call, own, inputs, keywords, training, recorder)  # compiles
            count, breaks = len(graphs), torch_calls.graph_breaks()
            recorder.kernels.clear()
            recorder.on = True
            with recorder:
                step(call, own, inputs, keywords, training, recorder)
            recorder.on = False
            memory = needed(own, inputs, keywords, training)
    kernels = recorder.finish(gpu.arch, products_only)
    notes = [note] if note else []
    notes += [f"graph break, {times} times: {' '.join(why.split())[:300]}" for why, times in breaks.items()]
    body = {"name": name, "kernels": [asdict(kernel) for kernel in kernels], "graphs": count, "notes": notes}
    return body | {"memory": memory}


def step(
    call: Callable[..., Any], model: Any, args: Any, kwargs: Any, training: bool, recorder: Recorder | None = None
) -> None:
    """Forward, and in training the backward of every output; the gradients of the outputs are given."""
    if isinstance(model, nn.Module):
        model.zero_grad(set_to_none=True)
    _at(recorder, "forward")
    if not training:
        with torch.no_grad():
            call(*args, **kwargs)
        return
    outputs = [y for y in _tensors(call(*args, **kwargs)) if y.requires_grad]
    if not outputs:
        raise ValueError("training: no output of the model requires a gradient")
    with recorder.paused() if recorder is not None else contextlib.nullcontext():
        seeds = [torch.empty_like(y) for y in outputs]
    _at(recorder, "backward")
    torch.autograd.backward(outputs, seeds)


def _at(recorder: Recorder | None, phase: str) -> None:
    if recorder is not None:
        recorder.phase = phase


def backend(
    name: str, plan: Any, target: str, graphs: list[int], more: Mapping[str, Any] = MappingProxyType({})
) -> Callable[..., Any]:
    inner = torch_calls.lookup_backend("loka" if name == "loka" else "inductor")
    options = {"options": {"plan": plan, "target": target, **more}} if name == "loka" else {}

    def backend(gm: Any, inputs: Any) -> Any:
        graphs.append(1)
        compat.name_root(gm)
        return inner(gm, inputs, **options)

    return backend


def converted(name: str, model: Any, training: bool) -> tuple[Any, str]:
    """torchao's own rewriting of the modules, and what to say of it."""
    if not name.startswith("torchao"):
        return model, ""
    if not isinstance(model, nn.Module):
        raise ValueError("torchao rewrites modules, and this is a function")
    scaling = name.split()[1]

    def wide(module: Any, fqn: str) -> bool:
        sides = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (0,)
        return all(side >= NARROWEST and side % 16 == 0 for side in sides)

    count = sum(wide(module, fqn) for fqn, module in model.named_modules())
    if training:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        model = convert_to_float8_training(
            model, config=Float8LinearConfig.from_recipe_name(scaling), module_filter_fn=wide
        )
    else:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, PerTensor, quantize_

        granularity = PerTensor() if scaling == "tensorwise" else PerRow()
        quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=granularity), filter_fn=wide)
    form = "convert_to_float8_training" if training else "weights quantized beforehand, activations at every call"
    return model, f"torchao float8 {scaling} on {count} linears of at least {NARROWEST} x {NARROWEST}; {form}"


# ---------------------------------------------------------------- the model on a GPU that is not there


def on_gpu(value: Any, seen: dict[int, Any]) -> Any:
    """The same with fake CUDA tensors for tensors; modules are copied. Under a fake mode."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            plain = [each for each in vars(module).values() if isinstance(each, torch.Tensor)]
            for tensor in (*module._parameters.values(), *module._buffers.values(), *plain):
                on_gpu(tensor, seen)
        return copy.deepcopy(value, dict(seen))  # which takes what is in there for copied already
    if isinstance(value, torch.Tensor):
        if id(value) not in seen:  # tied parameters stay tied
            seen[id(value)] = _fake(value)
        return seen[id(value)]
    if isinstance(value, Mapping):
        return {key: on_gpu(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [on_gpu(item, seen) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    parts = torch_calls.traceable_parts(tensor)
    if parts is not None:
        names, context = parts
        inner = {name: _fake(getattr(tensor, name)) for name in names}
        made = type(tensor).__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())
    else:
        made = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="cuda")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def needed(model: Any, args: Any, kwargs: Any, training: bool) -> int:
    """Bytes of device memory a step takes at least: parameters, buffers, inputs, and gradients in training. What
    activations take comes on top."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    gradients = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad) if training else 0
    return nbytes([*parameters, *buffers, *_tensors(args), *_tensors(kwargs)]) + gradients


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


@contextlib.contextmanager
def _module_names(model: Any, recorder: Recorder) -> Any:
    """In eager mode the module that runs is the site; not in the backward, which autograd runs."""
    if not isinstance(model, nn.Module):
        yield
        return
    stack: list[str] = []

    def enter(fqn: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(fqn)
            recorder.module = fqn

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        recorder.module = stack[-1] if stack else ""

    handles = []
    for fqn, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(fqn or "self")), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- loka's own operators


@contextlib.contextmanager
def _own_launches(recorder: Recorder) -> Any:
    """loka's kernels say themselves what they multiply and move."""
    store: dict[Any, Any] = {}

    def frozen(weight: torch.Tensor, form: Any, make: Callable[[torch.Tensor], Any]) -> Any:
        key = id(weight), form
        if key not in store:
            with recorder.paused():  # once, before the calls that count
                store[key] = make(weight)
        return store[key]

    with instead(Launch, "run", lambda self: recorder.own_kernel(self)), instead(once, "frozen", frozen):
        yield
