"""Every private name of torch, Inductor and triton that a preview replaces. Seen with torch 2.11 to 2.14.

`PATCHES` is the table: what is replaced, and by what, for a GPU that is not there. tests/preview/test_torch_patches.py
goes through it row by row, so a new version of torch names the row that it broke. Further down stand what is replaced
otherwise: triton's driver, and what torch has kept of a device's answers. torch_calls.py has the private functions
that are only called; nothing else in loka_compile/preview touches a private name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from loka_compile.preview.gpu import Gpu
from loka_compile.preview.kernel_bytes import with_bytes, with_bytes_of_old


@dataclass(frozen=True)
class Patch:
    """owner: "module" or "module:Class". name: its attribute. make(gpu, original): what stands there meanwhile.
    optional: a build of torch without CUDA, or another version, may lack it."""

    owner: str
    name: str
    make: Callable[[Gpu, Any], Any]
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.owner.replace(':', '.')}.{self.name}"

    def holder(self) -> Any:
        module, _, path = self.owner.partition(":")
        return functools.reduce(getattr, filter(None, path.split(".")), importlib.import_module(module))


def _returns(value: Any) -> Callable[[Gpu, Any], Any]:
    return lambda gpu, original: lambda *args, **kwargs: value


def _tells(attribute: str) -> Callable[[Gpu, Any], Any]:
    return lambda gpu, original: lambda *args, **kwargs: getattr(gpu, attribute)


def _static(make: Callable[[Gpu, Any], Any]) -> Callable[[Gpu, Any], Any]:
    return lambda gpu, original: staticmethod(make(gpu, original))


class _Stream:
    """The one stream; nothing is ever in it."""

    cuda_stream = stream_id = device_index = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


_ANSWERS: Mapping[str, Callable[[Gpu, Any], Any]] = {
    "is_available": _returns(True),
    "device_count": _returns(1),
    "current_device": _returns(0),
    "is_initialized": _returns(True),
    "get_device_properties": _tells("properties"),
    "get_device_capability": _tells("capability"),
    "get_device_name": _tells("name"),
    "get_arch_list": lambda gpu, _: lambda: [gpu.arch],
    "is_bf16_supported": _returns(True),
    "set_device": _returns(None),
    "is_current_stream_capturing": _returns(False),
    "synchronize": _returns(None),
    "empty_cache": _returns(None),
    "memory_allocated": _returns(0),
    "current_stream": lambda gpu, _: lambda *args: _Stream(),
    "get_rng_state": lambda gpu, _: lambda *args: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": _returns(None),
    "_lazy_init": _returns(None),
    "_is_compiled": _returns(True),
    "_exchange_device": _returns(0),
    "_maybe_exchange_device": _returns(0),
}
_CAPTURED = (  # what Dynamo's interface to CUDA took from torch.cuda when it was imported
    "current_device",
    "set_device",
    "device_count",
    "synchronize",
    "get_device_properties",
    "is_bf16_supported",
    "memory_allocated",
    "current_stream",
)
_INTERFACE = "torch._dynamo.device_interface:CudaInterface"


def _properties_of_inductor(gpu: Gpu, original: Any) -> Any:
    from torch._inductor.runtime.hints import DeviceProperties

    answer = DeviceProperties(
        type="hip" if gpu.amd else "cuda",
        index=0,
        multi_processor_count=gpu.chip.sms,
        cc=gpu.arch if gpu.amd else gpu.major * 10 + gpu.minor,
        major=gpu.major,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=gpu.properties.max_threads_per_multi_processor,
        max_threads_per_block=1024,
        warp_size=gpu.chip.lanes,
    )
    return classmethod(lambda cls, device: answer)


def _recorded_kernel(gpu: Gpu, original: Any) -> Any:
    """Inductor's kernel, loaded but not compiled; running it only records."""

    def triton(self: Any, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
        from torch._inductor.codecache import PyCodeCache

        tuner = getattr(PyCodeCache.load(source_code), kernel_name)
        return SimpleNamespace(run=functools.partial(gpu.on_inductor_kernel, kernel_name, source_code, tuner))

    return triton


def _wrapper_without_memory(gpu: Gpu, original: Any) -> Any:
    """Inductor's wrapper is run as it is, but what it allocates and reinterprets are fake tensors."""

    def strided(device: str) -> Any:
        return lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device)

    replaced = {
        "empty_strided_cuda": strided("cuda"),
        "empty_strided_cpu": strided("cpu"),
        "reinterpret_tensor": lambda t, size, stride, offset=0: t.as_strided(size, stride, t.storage_offset() + offset),
        "assert_size_stride": lambda *args, **kwargs: None,
        "assert_alignment": lambda *args, **kwargs: None,
        "get_raw_stream": lambda index: 0,
    }

    def compile_to_module(self: Any, wrapper_code: Any) -> Any:
        module = original(self, wrapper_code)
        for name in replaced.keys() & vars(module).keys():
            setattr(module, name, replaced[name])
        gpu.on_wrapper(module.__file__, [(line, getattr(node, "meta", {})) for line, node in wrapper_code.line_map])
        return module

    return compile_to_module


def _constants_on_cpu(gpu: Gpu, original: Any) -> Any:
    """Inductor evaluates constants for real."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnCpu(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            def there(value: Any) -> Any:
                return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

            return func(*map(there, args), **{name: there(value) for name, value in (kwargs or {}).items()})

    def deduce(self: Any, node: Any) -> Any:
        with OnCpu():
            return original(self, node)

    return deduce


def _first_configuration(gpu: Gpu, original: Any) -> Any:
    """@triton.autotune without timing: the first configuration that its own pruning leaves."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        config = (self.prune_configs(kwargs) if len(self.configs) > 1 else self.configs)[0]
        return self.fn.run(*args, **kwargs, **config.all_kwargs())

    return run


def _hand_launched(gpu: Gpu, original: Any) -> Any:
    return lambda self, *args, grid, warmup, **kwargs: gpu.on_triton_kernel(self, args, grid, kwargs)


def _out_is_the_result(gpu: Gpu, original: Any) -> Any:
    """Overloads with out= that have no meta kernel, such as _scaled_mm.out."""

    def fallback(mode: Any, func: Any, flat_args: Any, args_spec: Any, error: Any) -> Any:
        from torch.utils._pytree import tree_unflatten

        _, kwargs = tree_unflatten(flat_args, args_spec)
        outs = [kwargs[a.name] for a in func._schema.arguments if a.is_out and a.name in kwargs]
        if not outs:
            return original(mode, func, flat_args, args_spec, error)
        return outs[0] if len(outs) == 1 else tuple(outs)

    return fallback


PATCHES: tuple[Patch, ...] = (
    *(Patch("torch.cuda", name, make) for name, make in _ANSWERS.items()),
    Patch("torch._C", "_cuda_getCurrentRawStream", _returns(0), optional=True),
    Patch("torch._subclasses.fake_tensor:FakeTensorMode", "avoid_device_init", lambda gpu, _: property(lambda _: True)),
    Patch("torch._subclasses.fake_tensor", "init_gpu_context", _returns(None)),  # 2.11 makes a tensor on the GPU there
    Patch("torch._subclasses.fake_tensor", "run_fallback_kernel", _out_is_the_result),
    *(Patch(_INTERFACE, name, _static(_ANSWERS[name])) for name in _CAPTURED),
    Patch(_INTERFACE, "get_raw_stream", _static(_returns(0)), optional=True),
    Patch(_INTERFACE, "exchange_device", _static(_returns(0))),
    Patch(_INTERFACE, "maybe_exchange_device", _static(_returns(0))),
    Patch(f"{_INTERFACE}.Worker", "get_device_properties", _static(_tells("properties"))),
    Patch(f"{_INTERFACE}.Worker", "current_device", _static(_returns(0))),
    Patch("torch._inductor.runtime.hints:DeviceProperties", "create", _properties_of_inductor),
    Patch("torch._inductor.runtime.triton_helpers", "set_driver_to_gpu", _returns(None)),
    Patch("torch._inductor.runtime.triton_helpers", "set_driver_to_cpu", _returns(None)),
    Patch("torch._inductor.async_compile:AsyncCompile", "triton", _recorded_kernel),
    Patch("torch._inductor.async_compile:AsyncCompile", "wait", lambda gpu, _: lambda self, scope: None),
    Patch("torch._inductor.graph:GraphLowering", "_compile_to_module_lines", _wrapper_without_memory),
    Patch("torch._inductor.fx_passes.joint_graph:UniformValueConstantFolder", "_deduce_value", _constants_on_cpu),
    Patch("torch._inductor.codegen.triton:TritonKernel", "inductor_meta_common", with_bytes_of_old),  # comes first
    Patch("torch._inductor.codegen.triton:TritonKernel", "inductor_meta_per_kernel", with_bytes, optional=True),
    Patch("triton.runtime.jit:JITFunction", "run", _hand_launched),
    Patch("triton.runtime.autotuner:Autotuner", "run", _first_configuration),
)


# ---------------------------------------------------------------- what no row of the table can do


@contextlib.contextmanager
def triton_driver(gpu: Gpu) -> Iterator[None]:
    """Triton's active driver knows its target and has nothing to launch on (triton.runtime.driver)."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.driver import driver

    chip, limits = gpu.chip, {"max_num_regs": 65536, "multiprocessor_count": gpu.chip.sms}
    limits |= {"max_shared_mem": chip.shared_limit, "warpSize": chip.lanes}
    target = GPUTarget("hip" if gpu.amd else "cuda", gpu.arch if gpu.amd else gpu.major * 10 + gpu.minor, chip.lanes)

    class AbsentDriver(DriverBase):
        launcher_cls = None
        utils = SimpleNamespace(get_device_properties=lambda index=0: limits)

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return target

        def get_active_torch_device(self) -> Any:
            return torch.device("cuda", 0)

        def get_benchmarker(self) -> Any:
            return lambda call, **kwargs: [1.0, 1.0, 1.0]

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, index: int = 0) -> int:
            return 0

        def get_device_interface(self) -> Any:
            return torch.cuda

    before = getattr(driver, "_active", None)
    driver.set_active(AbsentDriver())
    try:
        yield
    finally:
        driver._active = before


_ASK_THE_DEVICE = (
    "torch.utils._triton",
    "torch._inductor.utils",
    "torch._inductor.runtime",
    "torch._inductor.codegen",
    "torch._inductor.kernel",
    "torch._inductor.template_heuristics",
    "torch._inductor.choices",
)
_CACHED = type(functools.lru_cache(len))


def forget_the_device() -> None:
    """Empties the functools caches of what torch has asked a device. (Not those of fx_passes: Inductor's patterns
    cannot be registered twice.)"""
    for name, module in list(sys.modules.items()):
        if name.startswith(_ASK_THE_DEVICE):
            for value in list(vars(module).values()):
                if isinstance(value, _CACHED) and value.__module__.startswith(_ASK_THE_DEVICE):
                    value.cache_clear()
