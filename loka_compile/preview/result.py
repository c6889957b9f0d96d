"""What a preview found, as plain data: launches, sides, and the times that are modelled from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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


@dataclass(frozen=True)
class Preview:
    """One model on one target. sides: the first is what the others are held against ("against"), where it is there.
    rates: what times are modelled with. memory: bytes that a step needs at least. where: the GPU, if it was measured.
    plan: the one that loka's side follows, as Plan.to_json writes it (dispatch.plan.parse_plan reads it), "" if none.
    options: what loka's side is compiled with beside it.
    """

    model: str
    target: str
    training: bool
    against: str
    sides: tuple[Side, ...]
    rates: Rates
    memory: int = 0
    capacity: float = float("inf")
    versions: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    plan: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def side(self, name: str) -> Side:
        """Raises KeyError for a side that is not there."""
        for side in self.sides:
            if side.name == name:
                return side
        raise KeyError(f"no side {name!r}; there are {', '.join(side.name for side in self.sides)}")

    def speedup(self, name: str, over: str = "", graphs: bool = False) -> float | None:
        """Modelled, of one side over another (`against`); None where either has nothing to show."""
        pair = [next((s for s in self.sides if s.name == n and s.kernels and not s.error), None)
                for n in (over or self.against, name)]  # fmt: skip
        if None in pair:
            return None
        base, own = pair
        return base.us(self.rates, graphs) / own.us(self.rates, graphs)  # type: ignore[union-attr]

    @property
    def complete(self) -> bool:
        """Every side has something to show, and the model fits in the GPU's memory."""
        return not any(side.error for side in self.sides) and self.memory <= self.capacity

    def to_json(self) -> dict[str, Any]:
        """Everything, with modelled times worked out, each marked as such."""
        body = asdict(self)
        body["plan"] = json.loads(self.plan) if self.plan else None
        body["capacity"] = self.capacity if self.capacity != float("inf") else None
        for own, side in zip(body["sides"], self.sides, strict=True):
            own["totals"] = {
                "kernels": len(side.kernels),
                "flops": side.flops,
                "bytes": side.bytes,
                "low_precision_flops": side.low_precision,
                "modelled_us": side.us(self.rates),
                "modelled_us_cuda_graphs": side.us(self.rates, graphs=True),
                "measured_us": side.measured_us,
                f"modelled_speedup_over_{self.against}": self.speedup(side.name),
            }
            for body_of, kernel in zip(own["kernels"], side.kernels, strict=True):
                us, bound = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, self.rates)
                body_of |= {"modelled_us": us, "bound_by": bound}
        return body

    def __str__(self) -> str:
        from loka_compile.preview.report import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from loka_compile.preview.report import tables

        return tables(self)


def kernel_from_json(body: Mapping[str, Any]) -> Kernel:
    known = {f.name for f in fields(Kernel)}
    value = {name: tuple(v) if isinstance(v, list) else v for name, v in body.items() if name in known}
    return Kernel(**value)


def side_from_json(body: Mapping[str, Any]) -> Side:
    kernels = tuple(kernel_from_json(each) for each in body.get("kernels", ()))
    return Side(body["name"], kernels, body.get("graphs", 0), tuple(body.get("notes", ())), body.get("error", ""))
