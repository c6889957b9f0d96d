"""Running what a graph is in float64, and comparing what it gives: outputs, inputs as they were written, gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, fx

BOUND = 1e-6
"""Float64's rounding, through norms of rows that nearly vanish."""
SHAKE = 1e-13
"""More than rounding does, of a value. A batch norm over equal rows, say, makes noise of it."""


def copies(inputs: Sequence[Any], training: bool) -> tuple[list[Any], list[Tensor]]:
    """(the inputs in float64 with their strides and aliases, the leaves that gradients are of)"""
    bases: dict[Any, Tensor] = {}
    leaves: list[Tensor] = []
    found: list[Any] = []
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    for x in inputs:
        if not isinstance(x, Tensor):
            found.append(x)
            continue
        key = x.untyped_storage().data_ptr(), x.dtype
        if key not in bases:
            base = _base(x)
            base = base.double() if base.is_floating_point() else base
            group = [y for y in tensors if y.untyped_storage().data_ptr() == key[0]]
            if training and base.is_floating_point() and any(y.requires_grad for y in group):
                leaves.append(base.requires_grad_())
                base = base.clone()
            bases[key] = base
        base = bases[key]
        whole = (base.shape, base.stride(), 0) == (x.shape, x.stride(), x.storage_offset())
        view = base if whole else base.as_strided(x.shape, x.stride(), x.storage_offset())
        found.append(view if x.requires_grad or not training else view.detach())
    return found, leaves


def _base(x: Tensor) -> Tensor:
    """A copy of the tensor that x is a view of, where that is all of the memory; of the memory as it lies."""
    root = x._base if x._base is not None else x
    dense = root.untyped_storage().nbytes() == root.numel() * root.itemsize and root.storage_offset() == 0
    if dense and root.dtype == x.dtype:
        made = torch.empty_strided(root.shape, root.stride(), dtype=root.dtype)
        return made.copy_(root.detach())
    return x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0).clone()


@contextlib.contextmanager
def new_in_float64() -> Iterator[None]:
    """Tensors that are made without naming a dtype are of float64, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(call: Callable[..., Any], inputs: Sequence[Any], training: bool) -> list[Tensor | None]:
    """Outputs, the inputs as they were written, and gradients."""
    args, leaves = copies(inputs, training)
    torch.manual_seed(1)
    with new_in_float64(), torch.set_grad_enabled(training):
        outs = [each for each in call(*args) if isinstance(each, Tensor)]
        weights = torch.Generator().manual_seed(2)
        loss = [
            (o * torch.randn(o.shape, generator=weights)).sum()
            for o in outs
            if o.requires_grad and o.is_floating_point()
        ]
        gradients = torch.autograd.grad(sum(loss), leaves, allow_unused=True) if loss and leaves else []
    return [*outs, *(x for x in args if isinstance(x, Tensor)), *gradients]


def differ(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None], bound: float = BOUND) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} values, not {len(wanted)}"
    for place, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if (a is None) != (b is None):
            return f"value {place}: a gradient is there in one only"
        if a is None or b is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"value {place}: {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        a, b = a.detach().double(), b.detach().double()
        known = torch.isfinite(b)
        if not known.any():
            continue
        size = torch.where(known, b, 0.0).square().mean().sqrt().clamp(min=1e-6)
        error = (torch.where(known, (a - b).abs(), 0.0).max() / size).item()
        if not error <= bound:
            return f"value {place}: wrong by {error:.1e}"
    return ""


class Shaken(fx.Interpreter):
    """A graph of which each value is another by more than rounding."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.noise = numpy.random.default_rng(3)  # of torch's own vmap refuses to draw

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "output" or not has_memory(out) or not out.is_floating_point():
            return out
        given = {self.env[each].untyped_storage()._cdata for each in n.all_input_nodes if has_memory(self.env[each])}
        if out.untyped_storage()._cdata in given or n.op in ("placeholder", "get_attr"):
            return out
        return out * (1 + SHAKE * torch.from_numpy(self.noise.standard_normal(tuple(out.shape))))


def has_memory(value: Any) -> bool:
    """It is a tensor, and none that a transform of torch.func wraps around another."""
    try:
        return isinstance(value, Tensor) and value.untyped_storage() is not None
    except NotImplementedError:
        return False


def shaky(shaken: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> set[int]:
    """Places of values that are others by rounding alone."""
    return {place for place, (a, b) in enumerate(zip(shaken, wanted, strict=True)) if differ([a], [b], BOUND / 10)}
