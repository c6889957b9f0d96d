"""The launches of a step in order: library operators as they are dispatched, Triton kernels as they are run."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from loka_compile.graph.sites import SITE_META, module_name
from loka_compile.kernels.launch import Launch
from loka_compile.kernels.op import BODIES
from loka_compile.machine.machine_code import CompileError
from loka_compile.preview import launches, torch_calls
from loka_compile.preview.result import Kernel

TORCHS_OWN = ("aten", "prims", "prim", "inductor", "profiler", "c10d", "_c10d_functional", "higher_order")
NO_KERNEL = {
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "empty_permuted",
    "as_strided",
    "detach",
    "detach_",
    "alias",
    "lift_fresh",
    "resize_",
    "set_",
    "view",
    "_unsafe_view",
    "_reshape_alias",
    "reshape",
    "is_same_size",
    "_local_scalar_dense",
    "record_stream",
    "_efficientzerotensor",
    "result_type",
    "is_pinned",
}
"""Operators that launch nothing; neither do views."""
GATHERS = {
    "embedding",
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "index",
    "index_select",
    "gather",
    "_unsafe_index",
}
"""Operators that read some rows of their first operand."""
SHORT = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "int64": "i64",
    "int32": "i32",
    "int8": "i8",
    "uint8": "u8",
    "bool": "b8",
}

MULTIPLIED = {8: "float8_e4m3fn", 16: "bfloat16"}
"""By the width of a tensor-core instruction's operands: what a kernel that states its FLOPs multiplies."""


class Recorder(TorchDispatchMode):
    """Sees what fake tensors run: `on` while launches count. `kernels` has them, `finish` adds what is compiled."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, compiled: dict[Any, dict[str, Any]] | None = None) -> None:
        """compiled: what launches compile to, shared by recorders that see the same ones."""
        super().__init__()
        self._compiled = {} if compiled is None else compiled
        self.on, self.phase, self.module = False, "forward", ""
        self.kernels: list[Kernel] = []
        self._candidates: dict[int, list[Launch]] = {}  # index of the kernel -> launches, by configuration
        self._wrappers: dict[str, tuple[list[int], list[str]]] = {}  # file -> first lines, sites

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    # ------------------------------------------------------------ library operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        out = func(*args, **kwargs)
        if not self.on:
            return out
        if namespace not in TORCHS_OWN:
            self._custom(func, args, kwargs, out)
        elif namespace in ("aten", "prims") and name not in NO_KERNEL and not func.is_view:
            self._add(self._library(func, args, kwargs, out))
        return out

    def _custom(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record the launches of the operator's body; the operator itself if they cannot be told."""
        name = func._schema.name
        body = BODIES.get(name) or torch_calls.custom_op_body(func)
        before, note = len(self.kernels), "opaque: FLOPs unknown"
        if body is not None:
            try:
                with self:  # dispatch has taken this mode off
                    body(*args, **kwargs)
                self.kernels[before:] = [replace(kernel, op=name) for kernel in self.kernels[before:]]
                return
            except Exception as error:  # a body that fake tensors cannot run
                note = f"opaque, its body does not run on fake tensors: {type(error).__name__}: {str(error)[:120]}"
                del self.kernels[before:]
                self._candidates = {i: c for i, c in self._candidates.items() if i < before}
        self._add(replace(self._library(func, args, kwargs, out), note=note, name=name))

    def _library(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> Kernel:
        name = func._schema.name.removeprefix("aten::")
        schema = func._schema.arguments
        given = [*zip(schema, args, strict=False), *((s, kwargs[s.name]) for s in schema if s.name in kwargs)]
        written = [t for s, value in given if s.alias_info is not None and s.alias_info.is_write for t in _flat(value)]
        read = [t for s, value in given if not s.is_out for t in _flat(value)]
        outputs = written or _flat(out)
        if name in ("copy_", "fill_", "zero_"):
            read = [t for t in read if all(t is not w for w in written)]
        flops = _flops(func, args, kwargs, out)
        moved = nbytes(read) + nbytes(outputs)
        if name in GATHERS and read:
            rows = args[1].numel() * read[0].shape[-1] if "embedding_bag" in name else outputs[0].numel()
            moved -= max(0, nbytes(read[:1]) - rows * read[0].element_size())
        matrices = [t for t in read if t.dim() >= 2 or not flops]
        operands = matrices[1:] if name in ("addmm", "baddbmm") and len(matrices) > 2 else matrices
        first = next((t for t in operands or outputs if t.is_floating_point() or flops), None)
        dtype = str((first if first is not None else outputs[0]).dtype).removeprefix("torch.") if outputs else "float32"
        shapes = tuple(map(_shape, read)), tuple(map(_shape, outputs))
        return Kernel(self.phase, "library", name, dtype, flops, moved, self._site(), "", *shapes)

    def _add(self, kernel: Kernel, candidates: Sequence[Launch] = ()) -> None:
        if kernel.kind == "library" and not kernel.bytes and not kernel.flops:
            return  # nothing on the device
        if candidates:
            self._candidates[len(self.kernels)] = [launches.on_meta(each) for each in candidates]
        self.kernels.append(kernel)

    # ------------------------------------------------------------ Triton kernels

    def inductor_kernel(self, name: str, source: str, tuner: Any, *args: Any, stream: Any = 0, **more: Any) -> None:
        """One of Inductor's, run by its wrapper. Its own estimate of the bytes knows what is gathered from a table, yet
        counts a buffer that is reused in place twice, also where the kernel no longer writes it."""
        if not self.on:
            return
        found = launches.of_inductor(tuner, args, more)
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        known = tuner.inductor_meta.get("kernel_num_gb")
        moved = min(round(known * 1e9) if known else math.inf, accessed(tuner.fn.src, found[0].args))
        self._triton(name, tensors, 0, int(moved), found)

    def triton_kernel(self, kernel: Any, args: Sequence[Any], grid: Any, kwargs: Mapping[str, Any]) -> None:
        """kernel[grid](...) in eager code or in a custom operator's body."""
        if self.on:
            launch = launches.by_hand(kernel, args, grid, kwargs)
            tensors = launches.tensors_of(launch)
            self._triton(kernel.__name__, tensors, 0, nbytes(tensors), [launch])

    def own_kernel(self, launch: Launch) -> None:
        """One of loka's own kernels, which knows its FLOPs and bytes."""
        if self.on and all(launch.grid):
            tensors = launches.tensors_of(launch)
            self._triton(launch.kernel.__name__, tensors, launch.flops, launch.nbytes, [launch])

    def _triton(self, name: str, tensors: Sequence[Any], flops: int, moved: int, found: Sequence[Launch]) -> None:
        wide = [t for t in tensors if t.is_floating_point()]
        narrow = [t for t in wide if t.dtype.itemsize == 1] if flops else []
        dtype = str([*narrow, *wide, *tensors][0].dtype).removeprefix("torch.") if tensors else "float32"
        shapes, grid = tuple(map(_shape, tensors)), found[0].grid if found else ()
        self._add(Kernel(self.phase, "triton", name, dtype, flops, moved, self._site(), "", shapes, (), grid), found)

    def finish(self, arch: str, products_only: bool = False) -> list[Kernel]:
        """With what Triton kernels compile to, and the FLOPs of those that do not state theirs. Outside all modes.
        products_only: of those that multiply; times need no more."""
        known = self._compiled
        for index, candidates in self._candidates.items():
            kernel = self.kernels[index]
            source = getattr(candidates[0].kernel, "src", "")
            if products_only and not kernel.flops and "tl.dot" not in source:
                continue
            key = arch, source.partition("(")[2], kernel.inputs, str(candidates[0].constants), kernel.grid
            try:
                if key not in known:
                    launch, found = launches.resources(candidates, arch)
                    flops: int | None = 0
                    dtype = ""
                    if "tl.dot" in source and not kernel.flops:
                        flops, dtype = launches.work_of(launch, arch)
                    known[key] = {"resources": found, "grid": launch.grid}
                    if kernel.flops and found["mma_bits"] in MULTIPLIED:
                        known[key]["dtype"] = MULTIPLIED[found["mma_bits"]]  # what it writes may be narrower
                    if flops or flops is None:
                        known[key] |= {"flops": flops or 0, "dtype": dtype}
                        known[key] |= {} if flops else {"note": "trips of a loop unknown, so FLOPs are"}
                self.kernels[index] = replace(kernel, **known[key])
            except CompileError as error:
                self.kernels[index] = replace(kernel, note=f"does not compile: {' '.join(str(error).split())[:200]}")
        self._candidates = {}
        return self.kernels

    # ------------------------------------------------------------ whom a launch works for

    def wrapper(self, file: str, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Remember which lines of generated code work for which node. lines: the first line of each, and the node's
        meta."""
        ordered = sorted(lines, key=lambda pair: pair[0])
        self._wrappers[file] = [line for line, _ in ordered], [_label(meta) for _, meta in ordered]

    def _site(self) -> str:
        """By the line of the generated code that is running; in eager mode the module that is."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename in self._wrappers:
                starts, labels = self._wrappers[frame.f_code.co_filename]
                at = bisect_right(starts, frame.f_lineno) - 1
                return labels[at] if at >= 0 else ""
            frame = frame.f_back  # type: ignore[assignment]
        return self.module


def _label(meta: Mapping[str, Any]) -> str:
    if SITE_META in meta:
        return str(meta[SITE_META].key)
    node = type("Node", (), {"meta": meta})
    return module_name(node) if meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack") else ""


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in _flat(item)] if isinstance(value, list | tuple) else []


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the distinct tensors on the device. An expanded dimension counts once."""
    seen = {id(t): t for t in tensors if t.device.type == "cuda"}
    sizes = ([int(n) for n, step in zip(t.shape, t.stride(), strict=True) if step] for t in seen.values())
    return sum(torch.Size(size).numel() * t.element_size() for size, t in zip(sizes, seen.values(), strict=True))


def accessed(source: str, args: Mapping[str, Any]) -> int:
    """Bytes of the tensors that a kernel's source loads, and of those it stores, each in whole."""
    loaded, stored, added = (set(re.findall(rf"tl\.{verb}\w*\((\w+)", source)) for verb in ("load", "store", "atomic"))
    return sum(
        nbytes([t for name, t in args.items() if name in names and isinstance(t, torch.Tensor)])
        for names in (loaded, stored, added, added)
    )


def _flops(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> int:
    if func.overloadpacket is torch.ops.aten._int_mm:  # torch.utils.flop_counter has none for it
        return 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
    formula = flop_registry.get(func.overloadpacket)
    if formula is None:
        return 0
    return int(formula(*args, **{name: v for name, v in kwargs.items() if name != "out"}, out_val=out))


def _shape(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{SHORT.get(dtype, dtype)}{[int(n) for n in tensor.shape]}"
