"""A program compiled whole: `backend="loka"` under a plan of int8 for every GEMM, in generated code, beside Inductor.

What a plan's rounding does to a program depends on the program, so the same plan run operator by operator says how far
from eager mode it may be: generated code may be FACTOR times as far, or as Inductor is, and a few roundings of its
dtype. Where a value jumps (a gradient at a ReLU's 0), generated code may be on the other side of it: it may be farther
by as much as eager mode is with parameters that are others by what int8 makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import loka_compile  # noqa: F401  # the backend
from loka_compile import compat
from loka_compile.graph.sites import annotate
from loka_compile.spec.decision import Candidate, Decision
from loka_compile.spec.plan import Plan
from tests.fuzz.check import load, tensors
from tests.fuzz.judge import PASSES
from tests.helpers import compile_op_by_op

FACTOR, ROUNDINGS = 3.0, 64
SHAKE, SHAKES = 2**-7, 8
"""Of each parameter, as int8 has 7 bits beside the sign; and how often."""


def whole(source: str) -> str:
    """What is wrong with it; empty if it is right, or Inductor does not run it either."""
    program = load(source)
    torch.manual_seed(0)
    model, args = program.Net().train(program.TRAINING), program.inputs()
    dynamic = program.DYNAMIC or None
    with torch.set_grad_enabled(program.TRAINING):
        plan = int8(model, args, dynamic)
        exact = values(lambda own: own, model, args)
        try:
            inductor = values(lambda own: torch.compile(own, dynamic=dynamic), model, args)
        except Exception:
            return ""
        options = {"plan": plan}
        found = values(lambda own: torch.compile(own, backend="loka", options=options, dynamic=dynamic), model, args)
        op_by_op = [  # exact algebra is undone where the plan would lose a GEMM
            values(lambda own: compile_op_by_op(own, plan, on_dynamo=passes, dynamic=dynamic), model, args)  # noqa: B023
            for passes in (PASSES, ())
        ]
        jumps = [values(lambda own: own, shaken(model, seed), args) for seed in range(SHAKES)]
    return next(
        (
            f"value {i}: {why}"
            for i, (own, eager, *others) in enumerate(zip(found, exact, inductor, *op_by_op, strict=True))
            if (why := farther(own, eager, others, [each[i] for each in jumps]))
        ),
        "",
    )


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """The model with other parameters, as far from its own as int8 makes them; what is compared as input stays."""
    noise = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + SHAKE * torch.randn(parameter.shape, generator=noise).to(parameter.dtype))
    return other


def farther(
    found: Tensor | None, exact: Tensor | None, others: Sequence[Tensor | None], jumps: Sequence[Tensor | None]
) -> str:
    """Why a value is farther from the exact one than the others, and eager mode on other parameters, allow."""
    if found is None or exact is None:
        return "" if found is exact else "it is there in one only"
    if found.dtype != exact.dtype or found.shape != exact.shape:
        return f"{found.dtype} {tuple(found.shape)}, not {exact.dtype} {tuple(exact.shape)}"
    known = torch.isfinite(exact)
    if not exact.is_floating_point() or not known.any():
        return "" if torch.equal(found, exact) or exact.is_floating_point() else "other integers"
    size = exact[known].double().square().mean().sqrt().item()
    away = lambda x: (x[known].double() - exact[known].double()).square().mean().sqrt().item()  # noqa: E731
    allowed = FACTOR * max(away(x) for x in others if x is not None) + ROUNDINGS * torch.finfo(exact.dtype).eps * size
    allowed += max(away(x) for x in jumps if x is not None)
    return "" if away(found) <= allowed else f"{away(found):.2e} from eager mode's, and {allowed:.2e} is allowed"


def values(compiled: Callable[[nn.Module], Any], model: nn.Module, args: Sequence[Any]) -> list[Tensor | None]:
    """Outputs, inputs as they were written, gradients."""
    torch._dynamo.reset()
    own = copy.deepcopy(model)
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in args]
    torch.manual_seed(3)
    outs = tensors(compiled(own)(*leaves))
    weights = torch.Generator().manual_seed(2)
    loss = [(o.float() * torch.randn(o.shape, generator=weights)).sum() for o in outs if o.requires_grad]
    wanted = [x for x in (*leaves, *own.parameters()) if x.requires_grad]
    grads = torch.autograd.grad(sum(loss), wanted, allow_unused=True) if loss else []
    return [each if each is None else each.detach() for each in (*outs, *leaves, *grads)]


def int8(model: nn.Module, args: Sequence[Any], dynamic: bool | None) -> Plan:
    """A plan of int8 for every GEMM that the program has."""
    decisions: dict[str, Decision] = {}

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def joint(graph: fx.Graph) -> None:
            for gemm in annotate(graph):
                site = gemm.site
                key = site.key if site.key not in decisions else f"{site.key}@{site.source}"
                decisions[key] = Decision(site, Candidate("int8_rowwise", "aten"), "all of them")

        compat.capture(gm, inputs, joint=joint, inner=lambda module, is_backward: module.forward)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(copy.deepcopy(model), backend=backend, dynamic=dynamic)(
        *(x.detach().clone().requires_grad_(x.requires_grad) for x in args)
    )
    return Plan("cpu", decisions, origin="all of them")
