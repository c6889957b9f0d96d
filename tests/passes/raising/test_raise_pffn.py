"""raise_pffn: Kunlun's block around loka::gdpa becomes one op; what does not and why; the same numbers.

The graphs are those of a CUDA device, run op by op here, where the op computes its reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from examples.kunlun.pffn import GDPA
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.raising.raise_pffn import RaisePffn
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
NOTHING = Plan("h100", {}, origin="nothing is planned")
PASSES = (RaiseGdpa(), RaisePffn(), RaiseNorms())
B, T, S, H, D = 3, 13, 7, 2, 16
W = H * D


def attended(n, k, v, reshape=True):
    q = (n.unflatten(-1, (H, D)) if reshape else n.view(*n.shape[:2], H, D)).transpose(1, 2)
    out = (F.gelu(q @ k.mT) @ v * 0.3).transpose(1, 2)
    return out.flatten(2) if reshape else out.reshape(*n.shape)


def block(s, k, v, reshape=True, bare=True, residual=True):
    n = F.layer_norm(s, (W,), eps=1e-6)
    z = n + attended(n, k, v, reshape)
    out = F.rms_norm(z, (W,), None if bare else torch.ones_like(s[0, 0]), 1e-4)
    return s + out if residual else out


def operands(dtype=torch.bfloat16, keys=S, batch=B, rows=T):
    torch.manual_seed(0)
    kv = (torch.randn(batch, H, keys, D) for _ in range(2))
    return [each.to(dtype) for each in (torch.randn(batch, rows, W), *kv)]


def run(fn, args, device="cuda", passes=PASSES):
    captured = compile_op_by_op(fn, NOTHING, device=device, on_dynamo=passes)
    found = captured(*args)
    with torch.no_grad():
        return captured, sqnr_db(found, fn(*(each.detach().double() for each in args)))


def whole(captured, graph="inference"):
    return captured.ops(graph)["loka.pffn"]


@pytest.mark.parametrize("reshape", [True, False])
def test_is_one_op(reshape):
    captured, noise = run(lambda *args: block(*args, reshape=reshape), operands())
    assert whole(captured) == 1 and noise > 40
    left = captured.ops("inference")
    assert not any(op in left for op in ("loka.gdpa", "aten.rsqrt", "aten.bmm", "loka.norm_quantize", "aten.add")), left


def test_kunluns_own_block():
    torch.manual_seed(0)
    model = GDPA(W, H, S, context_tokens=4, context_width=12).bfloat16()
    x_sum, s = torch.randn(B, 4, 12), torch.randn(B, T, W)
    exact = copy.deepcopy(model).double()(x_sum.double(), s.double())
    captured = compile_op_by_op(model, NOTHING, device="cuda", on_dynamo=PASSES)
    with torch.no_grad():
        assert sqnr_db(captured(x_sum.bfloat16(), s.bfloat16()), exact) > 38
    (rewrite,) = captured.results["raise_pffn", "dynamo"].rewrites
    assert whole(captured) == 1 and rewrite.did == "one op: norms, attention and residuals"


def test_any_batch_and_length():
    captured = compile_op_by_op(block, NOTHING, device="cuda", on_dynamo=PASSES)
    for batch, rows in ((5, 11), (7, 13)):
        args = operands(batch=batch, rows=rows)
        for each in args:
            torch._dynamo.mark_dynamic(each, 0)
        torch._dynamo.mark_dynamic(args[0], 1)
        assert sqnr_db(captured(*args), block(*(each.double() for each in args))) > 40
    assert captured.compilations == 1 and whole(captured) == 1


def test_in_training_its_attention_is_raised_alone():
    s, k, v = operands()
    captured, noise = run(block, [s.requires_grad_(), k, v])
    (reject,) = captured.results["raise_pffn", "dynamo"].rejects
    assert "needs a gradient" in reject.reason
    assert captured.ops("forward")["loka.gdpa"] == 1 and noise > 40


def test_many_keys_stay():
    captured, _ = run(block, operands(keys=129))
    (reject,) = captured.results["raise_pffn", "dynamo"].rejects
    assert "129 keys" in reject.reason and whole(captured) == 0


def n_read_elsewhere(s, k, v):
    n = F.layer_norm(s, (W,))
    return F.rms_norm(n + attended(n, k, v), (W,), None, 1e-4) + s + n


def heads_before_rows(s, k, v):
    """What looks like heads are rows of other tokens."""
    n = F.layer_norm(s, (W,))
    q = n.reshape(len(s), H, -1, D)
    out = F.gelu(q.transpose(1, 2).transpose(1, 2) @ k.mT) @ v
    return F.rms_norm(out.reshape(n.shape) + n, (W,), None, 1e-4) + s


def rows_as_heads(s, k, v):
    """The same, as far as it can look like the block: as many rows as heads."""
    n = F.layer_norm(s, (W,))
    q = n.view(len(s), H, 1, W).view(len(s), D, H, H).transpose(1, 2)
    return F.rms_norm((F.gelu(q @ k[..., :H].mT) @ v[..., :H]).transpose(1, 2).reshape(n.shape) + n, (W,)) + s


OTHER = {
    "heads before rows": heads_before_rows,
    "a weight": lambda s, k, v: block(s, k, v, bare=False),
    "no residual": lambda s, k, v: block(s, k, v, residual=False),
    "n is read elsewhere": n_read_elsewhere,
    "another residual": lambda s, k, v: block(s, k, v, residual=False) + s.square(),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_block_keeps_its_parts(name):
    captured, noise = run(OTHER[name], operands())
    assert whole(captured) == 0 and captured.ops("inference")["loka.gdpa"] == 1 and noise > 40


def test_heads_that_are_cut_across_tokens_stay():
    captured, noise = run(rows_as_heads, operands(rows=H))
    assert whole(captured) == 0 and captured.ops("inference")["loka.gdpa"] == 1 and noise > 40


def test_on_a_cpu_it_stays():
    captured, _ = run(block, operands(), device="cpu")
    assert whole(captured) == 0 and captured.ops("inference")["loka.gdpa"] == 0


def test_twice_is_once():
    captured, _ = run(block, operands(), passes=(*PASSES, *PASSES))
    assert whole(captured) == 1
