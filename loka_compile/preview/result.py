"""The launches of one way to run a model, as plain data, and the times that are modelled from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from loka_compile.preview.model import Rates, kernel_us


@dataclass(frozen=True)
class Kernel:
    """One launch. kind: "library" (a call of ATen's) or "triton". phase: forward or backward. site: the module it works
    for, or the GEMM's site; "" where unknown. op: the custom operator whose body launched it, if any. inputs, outputs:
    such as "bf16[4096, 512]"; a Triton kernel's tensors are all among inputs. dtype: of the operands that are
    multiplied, else of the first one. flops: of products. bytes: that must go through device memory. resources:
    compiled, of a Triton kernel: registers, spills (bytes of stack), shared (bytes), occupancy (programs an SM), waves.
    us: measured, on a real GPU, else None.
    """

    phase: str
    kind: str
    name: str
    dtype: str
    flops: int
    bytes: int
    site: str = ""
    op: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    grid: tuple[int, ...] = ()
    resources: Mapping[str, Any] | None = None
    note: str = ""
    us: float | None = None


@dataclass(frozen=True)
class Side:
    """One way to run the model. error: why there is nothing to show. notes: what to know, such as graph breaks."""

    name: str
    kernels: tuple[Kernel, ...] = ()
    graphs: int = 0
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def low_precision(self) -> float:
        """Share of the FLOPs on operands of 8 bits."""
        narrow = sum(k.flops for k in self.kernels if k.dtype.startswith(("float8", "int8", "uint8")))
        return narrow / self.flops if self.flops else 0.0

    def us(self, rates: Rates, graphs: bool = False) -> float:
        """Modelled microseconds of a step: its kernels one after the other."""
        return sum(kernel_us(k.flops, k.bytes, k.dtype, rates, graphs)[0] for k in self.kernels)

    @property
    def measured_us(self) -> float | None:
        times = [k.us for k in self.kernels]
        return sum(t for t in times if t is not None) if times and None not in times else None


def kernel_from_json(body: Mapping[str, Any]) -> Kernel:
    known = {f.name for f in fields(Kernel)}
    value: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in body.items() if name in known}
    return Kernel(**value)


def side_from_json(body: Mapping[str, Any]) -> Side:
    kernels = tuple(kernel_from_json(each) for each in body.get("kernels", ()))
    return Side(body["name"], kernels, body.get("graphs", 0), tuple(body.get("notes", ())), body.get("error", ""))
