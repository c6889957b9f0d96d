"""raise_gdpa: what becomes loka::gdpa, however it is written, what does not and why; the same numbers and gradients.

The graphs are those of a CUDA device, run op by op here, where gdpa computes its reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from examples.kunlun.pffn import GDPA
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
NOTHING = Plan("h100", {}, origin="nothing is planned")
B, H, T, S, D = 3, 2, 13, 7, 16


def operands(*batch, dtype=torch.bfloat16, queries=T):
    torch.manual_seed(0)
    return [torch.randn(*batch, n, D).to(dtype).requires_grad_() for n in (queries, S, S)]


def run(fn, *args, device="cuda"):
    """(what the pass did, output and gradients by SQNR against float64)"""
    exact = [each.detach().double().requires_grad_() for each in args]
    captured = compile_op_by_op(fn, NOTHING, device=device, on_dynamo=(RaiseGdpa(), RaiseNorms()))
    found, wanted = captured(*args), fn(*exact)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    (found.double() * weights).sum().backward()
    (wanted * weights).sum().backward()
    pairs = [(found, wanted), *((mine.grad, other.grad) for mine, other in zip(args, exact, strict=True))]
    return captured, [sqnr_db(mine, other) for mine, other in pairs]


def gdpas(captured, graph="forward"):
    return captured.ops(graph)["loka.gdpa"]


WRITTEN = {
    "operators, a factor behind": lambda q, k, v: F.gelu(q @ k.transpose(-1, -2)) @ v * 0.3,
    "functions, a factor on the weights": lambda q, k, v: torch.matmul(F.silu(torch.matmul(q, k.mT)) / 7, v),
    "a factor inside": lambda q, k, v: torch.relu((q @ k.mT) * 0.25) @ v,
    "factors on both sides": lambda q, k, v: 0.5 * (F.hardswish(0.25 * (q @ k.mT)) @ v),
    "tanh's gelu": lambda q, k, v: F.gelu(q @ k.mT, approximate="tanh") @ v,
    "the square of relu": lambda q, k, v: F.relu(q @ k.mT).square() @ v,
    "relu times itself": lambda q, k, v: (lambda r: r * r)((q @ k.mT).relu()) @ v,
    "leaky relu": lambda q, k, v: F.leaky_relu(q @ k.transpose(2, 3)) @ v,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_is_one_op_forward_and_backward(name):
    captured, noise = run(WRITTEN[name], *operands(B, H))
    assert gdpas(captured) == 1 and captured.ops("backward")["loka.gdpa_backward"] == 1
    assert not any("bmm" in op for graph in ("forward", "backward") for op in captured.ops(graph))
    assert min(noise) > 40, noise


def test_without_heads():
    captured, noise = run(lambda q, k, v: torch.bmm(F.gelu(q.bmm(k.mT)), v), *operands(B))
    assert gdpas(captured) == 1 and min(noise) > 40


def test_any_batch_and_length():
    """One compilation for lengths that share no divisor."""
    fn = WRITTEN["operators, a factor behind"]
    captured = compile_op_by_op(fn, NOTHING, device="cuda", on_dynamo=(RaiseGdpa(),))
    for batch, queries in ((5, 11), (7, 13)):
        args = operands(batch, H, queries=queries)
        for each in args:
            torch._dynamo.mark_dynamic(each, 0)
        torch._dynamo.mark_dynamic(args[0], 2)
        assert sqnr_db(captured(*args), fn(*(each.double() for each in args))) > 40
    assert captured.compilations == 1 and gdpas(captured) == 1


def test_in_kunluns_block():
    torch.manual_seed(0)
    model = GDPA(32, 2, 8, context_tokens=4, context_width=12).bfloat16()
    x_sum, s = torch.randn(B, 4, 12), torch.randn(B, T, 32)
    exact = copy.deepcopy(model).double()(x_sum.double(), s.double())
    call = compile_op_by_op(model, NOTHING, device="cuda", on_dynamo=(RaiseGdpa(), RaiseNorms()))
    with torch.no_grad():
        assert sqnr_db(call(x_sum.bfloat16(), s.bfloat16()), exact) > 38
    assert gdpas(call, "inference") == 1
    (rewrite,) = call.results["raise_gdpa", "dynamo"].rewrites
    assert rewrite.did == "one op: attention by gelu"


def two_readers(q, k, v):
    p = F.gelu(q @ k.mT)
    return p @ v + p.sum()


def in_place(q, k, v):
    s = q @ k.mT
    s.add_(1.0)
    return F.gelu(s) @ v


REFUSED = {
    "its weights are read by others": (two_readers, (B, H), torch.bfloat16, "p is read elsewhere too"),
    "float32": (
        WRITTEN["a factor inside"],
        (B, H),
        torch.float32,
        "queries, keys and values are torch.float32",
    ),
    "five dimensions": (WRITTEN["a factor inside"], (2, B, H), torch.bfloat16, "q, k and v have 5, 5 and 5 dim"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stays_with_the_reason(name):
    fn, batch, dtype, reason = REFUSED[name]
    captured, _ = run(fn, *operands(*batch, dtype=dtype))
    (reject,) = captured.results["raise_gdpa", "dynamo"].rejects
    assert reject.reason.startswith(reason) and gdpas(captured) == 0


def test_one_key_for_all_requests_stays():
    q, _, _ = operands(B, H)
    _, k, v = operands(1, H)
    captured, _ = run(WRITTEN["operators, a factor behind"], q, k, v)
    (reject,) = captured.results["raise_gdpa", "dynamo"].rejects
    assert all(str(shape) in reject.reason for shape in ((B, H, T, D), (1, H, S, D))) and gdpas(captured) == 0


OTHER = {
    "softmax": lambda q, k, v: F.softmax(q @ k.mT, -1) @ v,
    "a mask between": lambda q, k, v: (F.gelu(q @ k.mT) * (q @ k.mT > 0)) @ v,
    "nothing between": lambda q, k, v: q @ k.mT @ v,
    "another slope": lambda q, k, v: F.leaky_relu(q @ k.mT, 0.2) @ v,
    "written to": in_place,
}


@pytest.mark.parametrize("name", OTHER)
def test_something_else_is_no_candidate(name):
    captured, _ = run(OTHER[name], *operands(B, H))
    result = captured.results.get(("raise_gdpa", "dynamo"))
    assert gdpas(captured) == 0 and (result is None or not result.rewrites)


def test_on_a_cpu_it_stays():
    captured, _ = run(WRITTEN["operators, a factor behind"], *operands(B, H), device="cpu")
    assert gdpas(captured) == 0


def test_twice_is_once_and_the_module_stays_known():
    class Net(nn.Module):
        def forward(self, q, k, v):
            return WRITTEN["operators, a factor behind"](q, k, v)

    captured = compile_op_by_op(Net(), NOTHING, device="cuda", on_dynamo=(RaiseGdpa(), RaiseGdpa()))
    captured(*operands(B, H))
    assert gdpas(captured) == 1
