"""raise_fm: what becomes loka::fm, however it is written, what does not and why, and the same numbers.

The graphs are those of a CUDA device, run op by op here, where fm computes its reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from examples.models.wukong import FactorizationMachineBlock
from loka_compile.passes.raising.raise_fm import RaiseFm
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
NOTHING = Plan("h100", {}, origin="nothing is planned")
B, N, D, K = 5, 7, 16, 3


def operands(dtype=torch.bfloat16, tokens=N, shared=True, batch=B):
    torch.manual_seed(0)
    y = torch.randn(*(() if shared else (batch,)), tokens, K)
    return [
        each.to(dtype) for each in (torch.randn(batch, tokens, D), y, torch.randn(tokens * K), torch.randn(tokens * K))
    ]


def run(fn, args, device="cuda", **kwargs):
    """(what the pass did, dB against float64)"""
    captured = compile_op_by_op(fn, NOTHING, device=device, on_dynamo=(RaiseFm(), RaiseNorms()), **kwargs)
    found = captured(*args)
    with torch.no_grad():
        return captured, sqnr_db(found, fn(*(each.detach().double() for each in args)))


def fms(captured, graph="inference"):
    return captured.ops(graph)["loka.fm"]


def layer(pairs, weight, bias):
    return F.layer_norm(pairs.flatten(1), (pairs.shape[1] * K,), weight, bias)


WRITTEN = {
    "x (xT y), layer norm": lambda x, y, w, b: layer(x @ (x.transpose(1, 2) @ y), w, b),
    "(x xT) y, layer norm": lambda x, y, w, b: layer(torch.matmul(x, x.mT) @ y, w, b),
    "reshaped, rms norm": lambda x, y, w, b: F.rms_norm((x @ (x.mT @ y)).reshape(len(x), -1), (N * K,), w, 1e-4),
    "a norm of one block": lambda x, y, w, b: F.rms_norm(
        (x @ (x.mT @ y)).flatten(1).unflatten(-1, (-1, N * K)), (N * K,)
    ).flatten(-2),
    "no norm": lambda x, y, w, b: x @ (x.mT @ y),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_is_one_op(name, shared):
    captured, noise = run(WRITTEN[name], operands(shared=shared))
    assert fms(captured) == 1 and noise > 38
    left = captured.ops("inference")
    assert not any(op in ("aten.bmm", "aten.mm", "aten.rsqrt", "loka.norm_quantize") for op in left), left


def test_in_wukongs_block():
    torch.manual_seed(0)
    model = FactorizationMachineBlock(N, 4, D, K, (32,), 0.0).bfloat16().eval()
    (x, *_), exact = operands(), copy.deepcopy(model).double()
    captured = compile_op_by_op(model, NOTHING, device="cuda", on_dynamo=(RaiseFm(), RaiseNorms()))
    with torch.no_grad():
        assert sqnr_db(captured(x), exact(x.double())) > 35
    (rewrite,) = captured.results["raise_fm", "dynamo"].rewrites
    assert fms(captured) == 1 and rewrite.did == "one op: factorization machine, layer norm"


def test_any_batch():
    captured = compile_op_by_op(WRITTEN["x (xT y), layer norm"], NOTHING, device="cuda", on_dynamo=(RaiseFm(),))
    for batch in (11, 13):
        args = operands(batch=batch)
        torch._dynamo.mark_dynamic(args[0], 0)
        assert sqnr_db(captured(*args), WRITTEN["x (xT y), layer norm"](*(a.double() for a in args))) > 38
    assert captured.compilations == 1 and fms(captured) == 1


def two_readers(x, y, w, b):
    first = x.mT @ y
    return layer(x @ first, w, b) + first.sum()


def norm_of_tokens(x, y, w, b):
    return F.layer_norm(x @ (x.mT @ y), (K,))


REFUSED = {
    "float32": (
        WRITTEN["no norm"],
        operands(torch.float32),
        "the kernel multiplies bfloat16 and float16, not torch.fl",
    ),
    "many tokens": (WRITTEN["no norm"], operands(tokens=65), "65 tokens: beyond 64 the products dominate"),
    "read twice": (two_readers, operands(), "first is read elsewhere too"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stays_with_the_reason(name):
    fn, args, reason = REFUSED[name]
    captured, _ = run(fn, args)
    (reject,) = captured.results["raise_fm", "dynamo"].rejects
    assert reject.reason.startswith(reason) and fms(captured) == 0


def test_in_training_it_stays():
    x, *rest = operands()
    captured, _ = run(WRITTEN["no norm"], [x.requires_grad_(), *rest])
    (reject,) = captured.results["raise_fm", "dynamo"].rejects
    assert "needs a gradient" in reject.reason


def test_another_norm_stays_behind_it():
    captured, noise = run(norm_of_tokens, operands())
    assert fms(captured) == 1 and noise > 38
    (rewrite,) = captured.results["raise_fm", "dynamo"].rewrites
    assert rewrite.did == "one op: factorization machine"


def test_a_norm_of_two_blocks_stays_behind_it():
    args = operands(tokens=8)
    fn = lambda x, y, w, b: F.rms_norm((x @ (x.mT @ y)).flatten(1).unflatten(-1, (-1, 4 * K)), (4 * K,)).flatten(-2)  # noqa: E731
    captured, noise = run(fn, args)
    assert fms(captured) == 1 and noise > 38
    (rewrite,) = captured.results["raise_fm", "dynamo"].rewrites
    assert rewrite.did == "one op: factorization machine"


OTHER = {
    "another's transpose": lambda x, y, w, b: x @ ((x + 1).mT @ y),
    "from the right": lambda x, y, w, b: (x.mT @ x) @ x.mT,
}


@pytest.mark.parametrize("name", OTHER)
def test_something_else_is_no_candidate(name):
    captured, _ = run(OTHER[name], operands())
    result = captured.results.get(("raise_fm", "dynamo"))
    assert fms(captured) == 0 and (result is None or not result.rewrites)


def test_on_a_cpu_it_stays():
    captured, _ = run(WRITTEN["no norm"], operands(), device="cpu")
    assert fms(captured) == 0
