"""Every pass on the Dynamo graph: with a dynamic batch, in training, on both sides of a graph break.

One model has what each of them looks for, twice, with a break between. The exact ones are held against the model as it
is, those that change it against what they do to it with a static batch.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.passes import PIPELINE, Context
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.adapt.mods import MODS
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.spec.compskip import CompSkip
from loka_compile.spec.plan import Plan
from tests.passes.exact import rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

D, T = 16, 19
SKIP = CompSkip.of({"layers": "parts.*.layers.*", "skip": {"odd": ["again"]}})
EXACT = {each.name: each for each in (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)}
WINDOW = WindowedAttention({"**": 9}, whole=False)
DTYPES = {"raise_norms": torch.float32} | dict.fromkeys(("raise_gdpa", "raise_pffn", "raise_fm"), torch.bfloat16)
INFERENCE = {"raise_fm", "raise_pffn"}
ADAPTING = {**MODS, "compskip": Skip(SKIP, whole=False), "windowed_attention": WINDOW}


def context(name, training):
    if name in ("merge", "batch", "mix_tokens"):
        return Context(Plan("h100", {}))
    return Context(Plan("cpu", {}), "cuda" if name in DTYPES else "cpu", training)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(D, D)

    def forward(self, x):
        return x + self.again(x)


class Part(nn.Module):
    """x (B, T, D) and one user's u (1, D) to the like of x, with what a pass looks for."""

    eps = 1e-3

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.a, self.b, self.norm, self.rms = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D), nn.RMSNorm(D, 1e-4)
        self.mix = nn.Linear(T, T)
        self.heads = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(5))
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x, u):
        return x.tanh() + getattr(self, self.name)(x, u)

    def canonicalize(self, x, u):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def hoist(self, x, u):
        return self.a(u.expand(len(x), -1)).unsqueeze(1)

    def merge(self, x, u):
        return sum(head(x).relu() for head in self.heads)

    def batch(self, x, u):
        return sum(head(x + number) for number, head in enumerate(self.heads))

    def reassociate(self, x, u):
        return (x / 10) @ x.mT @ x / 10

    def mix_tokens(self, x, u):
        return self.mix(x.mT).mT

    def norms(self, x, u):
        return self.rms(F.silu(self.norm(x)))

    raise_norms = block_norm = hard_swish = norms

    def raise_gdpa(self, x, u):
        q, k, v = (head(x) for head in self.heads[:3])
        return F.gelu(q @ k.mT) @ v / T

    def raise_pffn(self, x, u):
        n, k = F.layer_norm(x, (D,)), self.mix.weight[:, :D].expand(len(x), 1, T, D)
        q = n.unflatten(-1, (1, D)).transpose(1, 2)
        attended = torch.ops.loka.gdpa(q, k, k, None, None, q.shape[2], T, "gelu", 1.0, False, -1)
        return F.rms_norm(attended.transpose(1, 2).flatten(2) + n, (D,)) + x

    def raise_fm(self, x, u):
        x = x / 9
        return x @ (x.mT @ self.mix.weight[:, :D])

    def no_bias(self, x, u):
        return self.b(self.a(x).relu())

    def compskip(self, x, u):
        return self.layers[1](self.layers[0](x))

    def windowed_attention(self, x, u):
        q, k, v = (head(x).unsqueeze(1) for head in self.heads[:3])
        return F.scaled_dot_product_attention(q, k, v).squeeze(1)


class Model(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.parts, self.head = nn.ModuleList(Part(name) for _ in range(2)), nn.Linear(D, 1)

    def forward(self, x, u):
        x = self.parts[0](x, u)
        torch._dynamo.graph_break()
        return self.head(self.parts[1](x, u))


def inputs(batch, dtype, grad):
    x, u = (torch.randn(*shape, dtype=dtype, requires_grad=grad) for shape in ((batch, T, D), (1, D)))
    torch._dynamo.mark_static(x, (1, 2))
    return [x, u]


def gradients(model, out, args):
    model.zero_grad(set_to_none=True)
    out.sin().sum().backward()
    return [x.grad for x in args] + [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, training, marks=[] if training or name in INFERENCE else pytest.mark.slow)
        for name in (*EXACT, *ADAPTING)
        for training in (False, True)
    ],
)
def test_each_pass_works_everywhere(name, training):
    assert hasattr(Part, name), f"Part needs a method {name} that computes what the pass {name} looks for"
    each, dtype = {**EXACT, **ADAPTING}[name], DTYPES.get(name, torch.float64)
    near = {"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {}
    model = Model(name).to(dtype)
    with torch.set_grad_enabled(training):
        args = inputs(7, dtype, training)
        seen = rewritten(each, model, *args, dynamic=True, context=context(name, training))
        wanted = not (training and name in INFERENCE)
        assert [bool(result.rewrites) for result in seen.results] == [wanted, wanted]
        like = model if name in EXACT else rewritten(each, model, *args, dynamic=False).call
        args = inputs(7 if name in ADAPTING else 11, dtype, training)
        own = copy.deepcopy(args)
        out, expected = seen.call(*args), like(*own)
        torch.testing.assert_close(out, expected, **near)
        if training:
            for a, b in zip(gradients(model, out, args), gradients(model, expected, own), strict=True):
                torch.testing.assert_close(a, b, **near)
        seen.call(*inputs(5, dtype, training))
        assert len(seen.graphs) == 2  # both hold for any batch


class Norms(Part):
    def __init__(self):
        super().__init__("norms")

    def forward(self, x):
        return self.norms(self.canonicalize(x, None) * self.scale, None)


@pytest.mark.parametrize(
    ("options", "grad"),
    [({"recipes": ()}, False), ({"recipes": ()}, True), ({"recipes": ("fp16",), "measure_calls": 1}, True)],
)
def test_floats_that_may_change(options, grad, op_by_op):
    """A module's eps is an input of a graph with dynamic sizes, until something needs it as a number."""
    model = nn.Sequential(nn.Linear(D, D), Norms())
    compiled = torch.compile(model, backend="loka", dynamic=True, fullgraph=True, options={"race": False, **options})
    with torch.set_grad_enabled(grad):
        for batch, scale in ((7, 2.0), (11, 3.0), (5, 4.0)):
            model[1].scale, x = scale, torch.randn(batch, D, requires_grad=grad)
            torch.testing.assert_close(compiled(x), model(x), rtol=2e-2, atol=2e-2)
    told = loka.explain(compiled)
    assert "canonicalize: rms_norm for what was written out" in " ".join(str(told).split())
    assert len(told.graphs) == 1  # scale is not needed as one, and may change


class Recomputed(nn.Module):
    scale = 2.0

    def scaled(self, x):
        return x.tanh() * self.scale

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.scaled, x, use_reentrant=False)


@pytest.mark.parametrize("measure_calls", [0, 1])
def test_floats_that_may_change_inside_a_checkpoint(measure_calls, op_by_op):
    model = nn.Sequential(nn.Linear(D, D), Recomputed())
    options = {"race": False, "recipes": ("fp16",), "measure_calls": measure_calls}
    compiled = torch.compile(model, backend="loka", dynamic=True, fullgraph=True, options=options)
    for batch, scale in ((7, 2.0), (11, 3.0), (5, 4.0)):
        model[1].scale, x = scale, torch.randn(batch, D)
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-2, atol=2e-2)
