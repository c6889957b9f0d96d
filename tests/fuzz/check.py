"""Is a program the same after a pass? Every Dynamo graph of it, as it is and rewritten, is run op by op in float64.

The passes see the program's own dtypes and a GPU's context; dtypes in the graph's calls are then replaced by float64 in
both graphs, so that the two may differ by float64's rounding only: BOUND times the values' root mean square.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from loka_compile import compat
from loka_compile.graph.rerun import is_training
from loka_compile.passes import PIPELINE
from loka_compile.passes.dynamo import run_on_dynamo

BOUND = 1e-6
"""Float64's rounding, through norms of rows that nearly vanish."""
HALF, CASTS = (torch.float32, torch.float16, torch.bfloat16), ("float", "half", "bfloat16")
PASSES = (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)


def load(source: str) -> types.ModuleType:
    module = types.ModuleType("program")
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return module


def wide(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph in float64."""
    gm = compat.copy_dynamo_graph(gm)
    swap = lambda x: torch.float64 if any(x is each for each in HALF) else x  # noqa: E731
    for node in gm.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), swap)
        if node.target in (torch.nn.functional.rms_norm, torch.rms_norm):
            _with_eps(node)
        if node.op == "call_method" and node.target in CASTS:
            node.target = "double"
        if node.op == "call_method" and _casts(node):
            with gm.graph.inserting_after(node):
                apart = gm.graph.call_method("clone", (node,))
            node.replace_all_uses_with(apart, delete_user_cb=lambda user, apart=apart: user is not apart)
    gm.recompile()
    return gm


def _casts(node: fx.Node) -> bool:
    """It makes another dtype of a tensor, so new memory, which a cast from float64 to float64 would not."""
    new, old = (each.meta.get("example_value") if isinstance(each, fx.Node) else None for each in (node, node.args[0]))
    named = node.target in ("to", "type", "type_as", "double", *CASTS)
    return named and isinstance(new, Tensor) and isinstance(old, Tensor) and new.dtype != old.dtype


def _with_eps(node: fx.Node) -> None:
    """Without an eps of its own, a norm takes that of the dtype it computes in, which float64 would change."""
    names = ("input", "normalized_shape", "weight", "eps")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("eps") is None:
        value = node.args[0].meta["example_value"] if node.args else given["input"].meta["example_value"]
        computed = torch.promote_types(value.dtype, torch.float32)
        node.args, node.kwargs = (), {**given, "eps": torch.finfo(computed).eps}


def copies(inputs: Sequence[Any], training: bool) -> tuple[list[Any], list[Tensor]]:
    """(the inputs in float64 with their strides and aliases, the leaves that gradients are of)"""
    bases, leaves, found = {}, [], []
    for x in inputs:
        if not isinstance(x, Tensor):
            found.append(x)
            continue
        key = x.untyped_storage().data_ptr(), x.dtype
        if key not in bases:
            flat = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0).clone()
            flat = flat.double() if flat.is_floating_point() else flat
            group = [y for y in inputs if isinstance(y, Tensor) and y.untyped_storage().data_ptr() == key[0]]
            if training and flat.is_floating_point() and any(y.requires_grad for y in group):
                leaves.append(flat.requires_grad_())
                flat = flat.clone()
            bases[key] = flat
        view = bases[key].as_strided(x.shape, x.stride(), x.storage_offset())
        found.append(view if x.requires_grad or not training else view.detach())
    return found, leaves


def run(gm: fx.GraphModule, inputs: Sequence[Any], training: bool) -> list[Tensor | None]:
    """Outputs, the inputs as they were written, and gradients."""
    args, leaves = copies(inputs, training)
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.set_grad_enabled(training):
            outs = [each for each in gm(*args) if isinstance(each, Tensor)]
            loss = [(o * torch.randn(o.shape)).sum() for o in outs if o.requires_grad and o.is_floating_point()]
            gradients = torch.autograd.grad(sum(loss), leaves, allow_unused=True) if loss and leaves else []
    finally:
        torch.set_default_dtype(before)
    return [*outs, *(x for x in args if isinstance(x, Tensor)), *gradients]


def differ(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} values, not {len(wanted)}"
    for place, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if (a is None) != (b is None):
            return f"value {place}: a gradient is there in one only"
        if a is None or b is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"value {place}: {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        if not b.numel() or not torch.isfinite(b).all():
            continue
        a, b = a.detach().double(), b.detach().double()
        error = ((a - b).abs().max() / b.square().mean().sqrt().clamp(min=1e-6)).item()
        if not error <= BOUND:
            return f"value {place}: wrong by {error:.1e}"
    return ""


def check(source: str) -> tuple[dict[str, str], set[str], str]:
    """(pass -> what is wrong, the passes that fired, why the program says nothing)"""
    program = load(source)
    wrong: dict[str, str] = {}
    fired: set[str] = set()

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        training, variants = is_training(inputs), {}
        for name, passes in [*((each.name, (each,)) for each in PASSES), ("all", PASSES)]:
            try:
                new, changes = run_on_dynamo(gm, passes, "cuda", "h100", training)
            except Exception as error:
                if type(error).__module__.startswith("torch._dynamo"):
                    raise
                wrong[name] = f"crash: {type(error).__name__}: {error}"
                continue
            if any(change.result.rewrites for change in changes):
                fired.update(change.name for change in changes if change.result.rewrites)
                variants[name] = new

        def call(*args: Any) -> Any:
            wanted = run(wide(gm), args, training)
            for name, new in variants.items():
                try:
                    reason = differ(run(wide(new), args, training), wanted)
                except Exception as error:
                    reason = f"crash: {type(error).__name__}: {error}"
                if reason:
                    wrong[name] = reason
            return gm(*args)

        return call

    torch.manual_seed(0)
    model, args = program.Net().train(program.TRAINING), program.inputs()
    with torch.set_grad_enabled(program.TRAINING):
        try:
            copy.deepcopy(model)(*(x.detach().clone().requires_grad_(x.requires_grad) for x in args))
        except Exception as error:
            return {}, set(), f"eager refuses it: {error}"
        torch._dynamo.reset()
        try:
            torch.compile(model, backend=backend, dynamic=program.DYNAMIC or None)(*args)
        except Exception as error:
            return wrong, fired, f"not judged: {type(error).__name__}: {str(error)[:200]}"
    return wrong, fired, ""
