"""canonicalize: norms and gates written by hand are found however they are spelt; what is none stays, and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from examples.apart import APART
from loka_compile.passes import PassResult
from loka_compile.passes.adapt.mods import modified
from loka_compile.passes.dynamo import run_on_dynamo
from loka_compile.passes.simplify.canonicalize import Canonicalize

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
ROWS, N, EPS = 7, 48, 1e-4
NORMS = {F.rms_norm, F.layer_norm}

RMS = {
    "rsqrt of a mean of powers": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
    "the factor first": lambda x: torch.rsqrt(EPS + (x * x).mean(dim=-1, keepdim=True)) * x,
    "divided by a root": lambda x: x / torch.sqrt(torch.mean(x.square(), dim=1, keepdim=True) + EPS),
    "to the power": lambda x: x * (x.pow(2).mean(-1, True) + EPS) ** -0.5,
    "half a power": lambda x: x / (x**2).mean(-1, keepdim=True).add(EPS).pow(0.5),
    "methods": lambda x: x.mul(x.square().mean(-1, keepdim=True).add(EPS).rsqrt()),
    "reciprocal": lambda x: x * x.square().mean((-1,), keepdim=True).add(EPS).sqrt().reciprocal(),
    "one over": lambda x: x * (1 / (x.square().mean(-1, keepdim=True) + EPS).sqrt()),
    "float twice": lambda x: (x.float() * torch.rsqrt((x.float() ** 2).mean(-1, keepdim=True) + EPS)).type_as(x),
}
LAYER = {
    "var": lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + EPS),
    "correction": lambda x: (x - x.mean(-1, True)) * (x.var(-1, correction=0, keepdim=True) + EPS).rsqrt(),
    "positional": lambda x: (x - x.mean(-1, True)) * (torch.var(x, -1, False, True) + EPS).rsqrt(),
}


def written_out(x):
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + EPS)


def var_mean(x):
    var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (var + EPS).sqrt()


LAYER |= {"written out": written_out, "var_mean": var_mean}


def run(fn, *args):
    """The graph after the pass, what the pass says, and its result."""
    found = []

    def backend(gm, inputs):
        changed, changes = run_on_dynamo(gm, (Canonicalize(),))
        found.append((changed, changes[0].result if changes else PassResult()))
        again, twice = run_on_dynamo(changed, (Canonicalize(),))
        assert not any(change.result.rewrites for change in twice)
        assert len(again.graph.nodes) == len(changed.graph.nodes)
        return changed.forward

    out = torch.compile(fn, backend=backend, **APART)(*args)
    ((changed, result),) = found
    changed.graph.lint()
    return changed.graph, result, out


def calls(graph):
    return [node.target for node in graph.nodes if node.op in ("call_function", "call_method")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [*RMS, *LAYER])
def test_every_spelling(form, dtype):
    fn = (RMS | LAYER)[form]
    x = (torch.randn(ROWS, N) * 3 + 1).to(dtype)
    graph, result, out = run(lambda x: fn(x).sin(), x)
    assert len(result.rewrites) == 1 and not result.rejects
    assert calls(graph) == [F.rms_norm if form in RMS else F.layer_norm, "sin"]
    norm = next(node for node in graph.nodes if node.target in NORMS)
    assert norm.args[-1] == EPS and norm.meta["example_value"].shape == x.shape
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out, fn(x.double()).to(dtype).sin(), **close)


def test_a_width_that_may_change():
    x = torch.randn(ROWS, N)
    torch._dynamo.mark_dynamic(x, (0, 1))
    fn = RMS["rsqrt of a mean of powers"]
    graph, result, out = run(lambda x: fn(x).sin(), x)
    assert len(result.rewrites) == 1 and calls(graph) == ["size", F.rms_norm, "sin"]
    torch.testing.assert_close(out, fn(x).sin())


class Llama(nn.Module):
    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N).to(dtype))

    def forward(self, h):
        dtype = h.dtype
        h = h.to(torch.float32)
        variance = h.pow(2).mean(-1, keepdim=True)
        h = h * torch.rsqrt(variance + EPS)
        return self.weight * h.to(dtype)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_norm_of_llama_is_one_node(dynamic, grad):
    model, x = Llama(), torch.randn(257, N, dtype=torch.bfloat16)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.set_grad_enabled(grad):
        graph, result, out = run(model, x)
    assert calls(graph) == [F.rms_norm] and len(result.rewrites) == 1
    torch.testing.assert_close(out, model(x), rtol=2e-2, atol=2e-2)


def test_a_weight_of_another_dtype_stays_outside():
    graph, _, out = run(Llama(torch.float32), torch.randn(ROWS, N, dtype=torch.bfloat16))
    assert calls(graph)[0] is F.rms_norm and len(calls(graph)) == 2
    assert out.dtype == torch.float32


def test_layer_norm_takes_its_weight_and_bias():
    x, w, b = torch.randn(ROWS, N), torch.randn(N), torch.randn(N)
    graph, _, out = run(lambda x, w, b: LAYER["written out"](x) * w + b, x, w, b)
    assert calls(graph) == [F.layer_norm]
    torch.testing.assert_close(out, F.layer_norm(x, (N,), w, b, EPS))
    graph, _, out = run(lambda x, w, b: RMS["methods"](x) * w + b, x, w, b)
    assert len(calls(graph)) == 2  # an RMSNorm has no bias
    torch.testing.assert_close(out, F.rms_norm(x, (N,), w, EPS) + b)


def test_gradients_stay():
    x, w = torch.randn(ROWS, N, requires_grad=True), torch.randn(N, requires_grad=True)
    fn = lambda x, w: LAYER["var"](x) * w  # noqa: E731
    _, _, out = run(fn, x, w)
    cotangent = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (x, w), cotangent), torch.autograd.grad(fn(x, w), (x, w), cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_swish_gates():
    fn = lambda n, m: (n * n.sigmoid(), torch.sigmoid(m) * m, m * n.sigmoid())  # noqa: E731
    n, m = torch.randn(ROWS, N), torch.randn(ROWS, N)
    graph, result, out = run(fn, n, m)
    assert calls(graph).count(F.silu) == 2 and len(result.rewrites) == 2
    for ours, theirs in zip(out, fn(n, m), strict=True):
        torch.testing.assert_close(ours, theirs)


def in_place(x):
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    x.add_(1)
    return x * scale


NEAR_MISSES = {
    "mean over dim 0, not the last": lambda x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS),
    "mean over dim 0, 1, not the last": lambda x: x * torch.rsqrt(x.pow(2).mean((0, 1), keepdim=True) + EPS),
    "mean is taken of the whole tensor": lambda x: x * torch.rsqrt(x.pow(2).mean() + EPS),
    "mean's keepdim is False": lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + EPS),
    "var divides by N - 1 (unbiased)": lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + EPS).sqrt(),
    "eps is a tensor": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + x[0, 0].abs()),
    "eps is added to the deviation": lambda x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + EPS),
    "by a standard deviation, but its mean is not": lambda x: x / (x.var(-1, keepdim=True, correction=0) + EPS).sqrt(),
    "divided by the root mean square of": lambda x: x.sin() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
    "add_ writes in place to": in_place,
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_a_near_miss_says_why(reason):
    fn = NEAR_MISSES[reason]
    x = torch.randn(N, N)
    graph, result, out = run(lambda x: fn(x).sin(), x.clone())
    assert not result.rewrites and not NORMS & set(calls(graph))
    assert len(result.rejects) == 1 and reason in result.rejects[0].reason
    torch.testing.assert_close(out, fn(x.clone()).sin())


def test_a_graph_without_norms_is_untouched():
    before = lambda x: (x * x.mean(-1, keepdim=True), x / x.sqrt(), x.rsqrt() * x)  # noqa: E731
    graph, result, _ = run(before, torch.rand(ROWS, N))
    assert not result.rewrites and not result.rejects and len(calls(graph)) == 6


def test_mods_reach_what_was_written_by_hand():
    def backend(gm, inputs):
        changed, changes = run_on_dynamo(gm, (Canonicalize(),))
        changed, changes = modified(changed, ("block_norm", "hard_swish"))
        done.extend(rewrite.did for change in changes for rewrite in change.result.rewrites)
        return changed.forward

    done: list[str] = []
    n = RMS["methods"]
    torch.compile(lambda x: n(x) * torch.sigmoid(n(x)), backend=backend)(torch.randn(ROWS, N))
    assert done == ["RMSNorm over blocks of 48"] * 2  # two norms: no gate of one
    done.clear()

    def gated(x):
        y = n(x)
        return y * torch.sigmoid(y)

    torch.compile(gated, backend=backend)(torch.randn(ROWS, N))
    assert done == ["RMSNorm over blocks of 48", "hard swish"]
