"""Launches of Triton kernels as kernels/launch.py's plain data, whoever makes them, and what they compile to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from loka_compile.kernels.launch import Launch
from loka_compile.machine import ttir
from loka_compile.machine.machine_code import CompileError, compile_for, read
from loka_compile.preview import torch_calls
from loka_compile.spec.chips import CHIPS

CONFIGURATIONS = 6
"""Most configurations of a kernel that are compiled. Inductor would time them on a GPU; here the first one that does
not spill is shown."""


def of_inductor(tuner: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Launch]:
    """Launches of one of Inductor's kernels, one for each of its first configurations. args: as its wrapper gives
    them."""
    names = [name for name, kind in tuner.triton_meta["signature"].items() if kind != "constexpr"]
    values = dict(zip([*names, *tuner.inductor_meta.get("extra_launcher_args", ())], args, strict=False)) | dict(kwargs)
    made = []
    for config in tuner.configs[:CONFIGURATIONS]:
        constants = {**tuner.triton_meta.get("constants", {}), **config.kwargs}
        own = {name: values[name] for name in names if name in values}
        constants = {name: value for name, value in constants.items() if name in tuner.fn.arg_names and name not in own}
        grid = torch_calls.grid_of(tuner, config, values)
        made.append(Launch(tuner.fn, grid, own, constants, config.num_warps, config.num_stages))
    return made


def by_hand(kernel: Any, args: Sequence[Any], grid: Any, kwargs: Mapping[str, Any]) -> Launch:
    """The launch that kernel[grid](*args, **kwargs) would make."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in kwargs.items() if k in kernel.arg_names
    }
    for parameter in kernel.params:
        if parameter.name not in values and parameter.has_default:
            values[parameter.name] = parameter.default
    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    programs = grid(values) if callable(grid) else grid
    return Launch(
        kernel,
        tuple(int(x) for x in programs),
        {name: value for name, value in values.items() if name not in constexprs},
        {name: value for name, value in values.items() if name in constexprs},
        kwargs.get("num_warps", 4),
        kwargs.get("num_stages", 3),
    )


def tensors_of(launch: Launch) -> list[torch.Tensor]:
    found = [getattr(value, "base", value) for value in launch.args.values()]  # a TMA descriptor has its tensor there
    return [value for value in found if isinstance(value, torch.Tensor)]


def on_meta(launch: Launch) -> Launch:
    """The same with tensors that have no memory and belong to no mode: whoever keeps a launch keeps no gradient alive,
    which autograd would then copy."""

    def meta(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device="meta")
        base = getattr(value, "base", None)
        if isinstance(base, torch.Tensor) and dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(value, base=meta(base))
        return value

    with torch_calls.no_modes():
        return dataclasses.replace(launch, args={name: meta(value) for name, value in launch.args.items()})


def work_of(launch: Launch, arch: str) -> tuple[int | None, str]:
    """FLOPs of the products of a launch and the dtype of their operands, from Triton's IR; None where trips of a loop
    are unknown. Raises CompileError."""
    programs = max(1, math.prod(launch.grid))
    work = ttir.work(compile_for(launch, arch).asm["ttir"], launch.args, programs)
    total = 0.0
    for flops, around in work.dots:
        trips = [loop.trips for loop in around]
        if None in trips:
            return None, _dtype(work.types)
        total += flops * math.prod(trips) * programs  # type: ignore[arg-type]
    return round(total), _dtype(work.types)


def _dtype(types: set[str]) -> str:
    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "i8": "int8"}
    return next((names.get(t, "float8_e4m3fn" if t.startswith("f8") else t) for t in sorted(types)), "")


def resources(candidates: Sequence[Launch], arch: str) -> tuple[Launch, dict[str, Any]]:
    """The first launch that compiles without spills (else the first that compiles) and what it compiles to. Raises
    CompileError where none does."""
    best: tuple[Launch, Any] | None = None
    failure = CompileError("there is no configuration")
    for launch in candidates:
        try:
            code = read(launch, arch)
        except CompileError as error:
            failure = error
            continue
        if best is None or not code.stack:
            best = launch, code
        if not code.stack:
            break
    if best is None:
        raise failure
    launch, code = best
    waves = math.prod(launch.grid) / (CHIPS[arch].sms * max(1, code.occupancy))
    return launch, {
        "registers": code.registers,
        "spills": code.stack,
        "shared": code.shared,
        "occupancy": code.occupancy,
        "limited_by": code.limited_by,
        "warps": code.warps,
        "tensor_cores": sorted(code.mma),
        "mma_bits": code.mma_bits,
        "waves": round(waves, 2),
    }
