"""Reading sites: which GEMMs a model has, what they are called, and that the names stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loka_compile import compat
from loka_compile.graph.nodes import root, unflip
from loka_compile.graph.sites import GEMMS, annotate, annotated

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Root(nn.Module):
    """A root module with parameters and any forward. (Dynamo of torch 2.11 cannot unpack a ParameterList.)"""

    def __init__(self, forward, *shapes):
        super().__init__()
        self.body = forward
        self.names = [f"p{place}" for place in range(len(shapes))]
        for name, shape in zip(self.names, shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.body(x, *[getattr(self, name) for name in self.names])


class Net(nn.Module):
    """Every kind of nesting, a module called twice, and GEMMs of the root's own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2)])
        self.towers = nn.ModuleDict({"ctr": nn.Linear(16, 8), "cvr-2": nn.Linear(16, 8, bias=False)})
        self.mix = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = self.blocks[0](x)
        a, b = self.towers["ctr"](x), self.towers["cvr-2"](x)
        return F.linear(a, self.mix.t()) + b @ self.mix


NET_INFERENCE = {
    "embed#0": "(M, 12) @ (12, 16)",
    "blocks.0.0#0": "(M, 16) @ (16, 16)",
    "blocks.1.0#0": "(M, 16) @ (16, 16)",
    "blocks.0.0#1": "(M, 16) @ (16, 16)",
    "towers.ctr#0": "(M, 16) @ (16, 8)",
    "towers.cvr-2#0": "(M, 16) @ (16, 8)",
    "self#0": "(M, 8) @ (8, 4)",
    "self#1": "(M, 8) @ (8, 4)",
}


def shape(site):
    """Shape with the symbol or number of the batch called M."""
    sizes = {str(site.M), str(site.K)} - {"4", "8", "12", "16"}
    text = site.shape
    for name in sizes:
        text = text.replace(name, "M")
    return text


def by_key(sites):
    assert len({site.key for site in sites}) == len(sites)
    return {site.key: site for site in sites}


def in_inference(sites_of, fn, *args, **kwargs):
    with torch.no_grad():
        (sites,) = sites_of(fn, *args, **kwargs)
    assert all(site.role == "output" and site.gradient == "" for site in sites)
    return by_key(sites)


def in_training(sites_of, fn, *args, **kwargs):
    (sites,) = sites_of(fn, *args, **kwargs)
    return by_key(sites)


@pytest.mark.parametrize("dynamic", [False, True])
def test_names_of_nested_modules(sites_of, dynamic):
    sites = in_inference(sites_of, Net(), torch.randn(13, 12), dynamic=dynamic)
    assert {key.removesuffix(":output"): shape(site) for key, site in sites.items()} == NET_INFERENCE
    assert all(site.static_rhs for site in sites.values())
    assert sites["blocks.0.0#1:output"].fqn == "blocks.0.0"
    assert [site.M.is_number for site in sites.values()] == [not dynamic] * 8


def test_a_training_step_names_every_gemm_after_its_forward(sites_of):
    sites = in_training(sites_of, Net(), torch.randn(13, 12))
    roles = ("output", "grad_input", "grad_weight")
    expected = {f"{name}:{role}" for name in NET_INFERENCE for role in roles} - {"embed#0:grad_input"}
    assert sites.keys() == expected
    assert not any(site.static_rhs for site in sites.values())
    for key, site in sites.items():
        first = sites[key.rpartition(":")[0] + ":output"]
        if site.role == "grad_input":
            assert (site.M, site.K, site.N) == (first.M, first.N, first.K)
            assert site.gradient == "lhs"
        if site.role == "grad_weight":
            assert {site.M, site.N} == {first.K, first.N}
            assert site.K == first.M
            assert site.gradient in ("lhs", "rhs")
        assert site.fqn == first.fqn
        assert site.source == first.source


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(13,), (3, 13)])
def test_linear(sites_of, bias, lead):
    model = nn.Sequential(nn.Linear(12, 16, bias=bias))
    x = torch.randn(*lead, 12)
    rows = x.numel() // 12
    (site,) = in_inference(sites_of, model, x).values()
    assert (site.op, site.role, site.shape) == ("addmm" if bias else "mm", "output", f"({rows}, 12) @ (12, 16)")
    assert site.dtype == torch.float32
    assert site.static_rhs
    sites = in_training(sites_of, model, x)
    assert sorted(site.role for site in sites.values()) == ["grad_weight", "output"]  # x wants no gradient
    assert len(in_training(sites_of, model, x.requires_grad_())) == 3


def test_a_frozen_weight_has_no_grad_weight(sites_of):
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))
    model[1].requires_grad_(False)
    sites = in_training(sites_of, model, torch.randn(5, 12))
    assert Counter(site.role for site in sites.values()) == {"output": 2, "grad_input": 1, "grad_weight": 1}


CALLS = {
    "mm": (lambda x, w: torch.mm(x, w), (13, 12), [(12, 16)], "mm", "(13, 12) @ (12, 16)", True),
    "matmul": (lambda x, w: x @ w, (13, 12), [(12, 16)], "mm", "(13, 12) @ (12, 16)", True),
    "matmul 3d": (lambda x, w: x @ w, (3, 13, 12), [(12, 16)], "mm", "(39, 12) @ (12, 16)", True),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), (13, 12), [(12, 16), (16,)], "addmm", "(13, 12) @ (12, 16)", True),
    "functional linear": (lambda x, w: F.linear(x, w), (13, 12), [(16, 12)], "mm", "(13, 12) @ (12, 16)", True),
    "bmm": (lambda x, w: torch.bmm(x, w), (3, 13, 12), [(3, 12, 16)], "bmm", "3 x (13, 12) @ (12, 16)", True),
    "batched matmul": (lambda x, w: x @ w, (3, 13, 12), [(3, 12, 16)], "bmm", "3 x (13, 12) @ (12, 16)", True),
    "baddbmm": (
        lambda x, w, b: torch.baddbmm(b, x, w),
        (3, 13, 12),
        [(3, 12, 16), (3, 13, 16)],
        "baddbmm",
        "3 x (13, 12) @ (12, 16)",
        True,
    ),
    "einsum": (
        lambda x, w: torch.einsum("bnd,dk->bnk", x, w),
        (3, 13, 12),
        [(12, 16)],
        "bmm",
        "(39, 12) @ (12, 16)",
        False,
    ),
    "batched einsum": (
        lambda x, w: torch.einsum("bnd,bdk->bnk", x, w),
        (3, 13, 12),
        [(3, 12, 16)],
        "bmm",
        "3 x (13, 12) @ (12, 16)",
        False,
    ),
    "gram": (lambda x: x @ x.transpose(1, 2), (3, 13, 12), [], "bmm", "3 x (13, 12) @ (12, 13)", False),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_multiply(sites_of, name):
    body, shape, parameters, op, expected, static = CALLS[name]
    model, x = Root(body, *parameters), torch.randn(shape)
    sites = in_inference(sites_of, model, x)
    assert list(sites) == ["self#0:output"]
    site = sites["self#0:output"]
    assert (site.op, site.shape) == (op, expected)
    assert site.static_rhs == static
    trained = in_training(sites_of, model, x.requires_grad_())
    assert next(iter(trained)) == "self#0:output"
    assert set(trained) == {f"self#0:{role}" for role in ("output", "grad_input", "grad_weight")}


def test_gradients_of_a_gram_matrix_tell_their_places(sites_of):
    (forward, *backward) = in_training(
        sites_of, lambda x: (x @ x.transpose(1, 2)).sin(), torch.randn(2, 5, 3, requires_grad=True)
    ).values()
    assert forward.shape == "2 x (5, 3) @ (3, 5)"
    assert {(site.role, site.gradient) for site in backward} == {("grad_input", "lhs"), ("grad_weight", "rhs")}


def test_tied_weights(sites_of):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    sites = in_inference(sites_of, Tied(), torch.randn(5, 16))
    assert list(sites) == ["first#0:output", "second#0:output"]
    trained = in_training(sites_of, Tied(), torch.randn(5, 16))
    assert Counter(site.fqn for site in trained.values()) == {"first": 2, "second": 3}


def test_one_module_under_two_names_keeps_one(sites_of):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.again = self.first

        def forward(self, x):
            return self.again(self.first(x).relu())

    keys = list(in_inference(sites_of, Shared(), torch.randn(5, 16)))
    assert len(keys) == 2
    assert keys == list(in_inference(sites_of, Shared(), torch.randn(7, 16)))


def test_keys_do_not_depend_on_the_batch_nor_on_dynamic_shapes(sites_of):
    model = Net()
    x = torch.randn(13, 12)
    cases = [(m, dynamic) for m in (2, 61) for dynamic in (False, True)]
    inference = [list(in_inference(sites_of, model, torch.randn(m, 12), dynamic=dynamic)) for m, dynamic in cases]
    training = [list(in_training(sites_of, model, torch.randn(m, 12), dynamic=dynamic)) for m, dynamic in cases]
    assert all(keys == inference[0] for keys in inference)
    assert all(keys == training[0] for keys in training)
    assert list(in_inference(sites_of, model, x)) == [key for key in training[0] if key.endswith(":output")]


def test_symbolic_sizes(sites_of):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 16)

        def forward(self, x):
            return self.linear(x.reshape(-1, 12))

    x = torch.randn(13, 24)
    torch._dynamo.mark_dynamic(x, 0)
    sites = in_training(sites_of, Wide(), x)
    site = sites["linear#0:output"]
    (symbol,) = site.M.free_symbols
    assert 2 * symbol == site.M
    assert (site.N, site.K) == (16, 12)
    assert site.flops == 2 * 2 * symbol * 12 * 16
    assert 2 * symbol == sites["linear#0:grad_weight"].K


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {root!r})
from tests.graph.test_sites import Net
from loka_compile import compat
from loka_compile.graph.sites import annotate
found = []
def backend(gm, inputs):
    joint = lambda graph: found.extend(gemm.site for gemm in annotate(graph))
    return compat.capture(gm, inputs, joint=joint, inner=lambda module, is_backward: module.forward)
torch.compile(Net(), backend=backend)(torch.randn(13, 12))
print(json.dumps([[s.key, s.shape, s.source, s.gradient] for s in found]))
"""


def test_sites_are_the_same_in_another_process(sites_of):
    script = SCRIPT.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    there = json.loads(run.stdout.splitlines()[-1])
    here = in_training(sites_of, Net(), torch.randn(13, 12)).values()
    assert there == [[s.key, s.shape, s.source, s.gradient] for s in here]


def test_source_is_the_line_of_the_models_code(sites_of):
    sites = in_inference(sites_of, Net(), torch.randn(13, 12))
    lines = Path(__file__).read_text().splitlines()
    assert {site.source.split(":")[0] for site in sites.values()} == {Path(__file__).name}
    line = {key: lines[int(site.source.split(":")[1]) - 1] for key, site in sites.items()}
    assert "self.embed(x)" in line["embed#0:output"]
    assert "self.mix" in line["self#1:output"]


def test_a_parameter_that_the_graph_changes_is_not_static(sites_of):
    def forward(x, changed, kept):
        y = x @ changed @ kept
        with torch.no_grad():
            changed.mul_(0.5)
        return y

    sites = in_inference(sites_of, Root(forward, (12, 16), (16, 4)), torch.randn(5, 12))
    assert [site.static_rhs for site in sites.values()] == [False, True]


def test_what_is_no_parameter_is_not_static(sites_of):
    weight = torch.randn(12, 16)
    sites = in_inference(sites_of, lambda x, w: x @ w @ (w * 2).t(), torch.randn(5, 12), weight)
    assert not any(site.static_rhs for site in sites.values())
    derived = Root(lambda x, w: x @ (w * 2), (12, 16))
    assert not any(site.static_rhs for site in in_inference(sites_of, derived, torch.randn(5, 12)).values())


def test_a_buffer_is_static(sites_of):
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("basis", torch.randn(12, 16))

        def forward(self, x):
            return x @ self.basis

    (site,) = in_inference(sites_of, Projection(), torch.randn(5, 12)).values()
    assert site.static_rhs


def test_gemms_of_a_custom_autograd_function(sites_of):
    """Its backward is code of its own: keys stay unique and the forward's stay what they are."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return (x @ w) @ w.t()

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w @ w.t(), x.t() @ (g @ w)

    model = Root(lambda x, w: Product.apply(x.sin(), w), (12, 16))
    sites = in_training(sites_of, model, torch.randn(5, 12, requires_grad=True))
    assert list(sites)[:2] == ["self#0:output", "self#1:output"]
    assert len(sites) == 6


def test_integer_products_are_sites_too(sites_of):
    (site,) = in_inference(sites_of, lambda x: x @ x.t(), torch.ones(3, 4, dtype=torch.int64)).values()
    assert site.dtype == torch.int64


def test_annotated_finds_the_sites_again_after_partitioning():
    seen = {}

    def joint(graph):
        seen["joint"] = [(g.site.key, g.bias is not None) for g in annotate(graph)]
        for node in graph.nodes:  # what annotate says of a node's operands is what the node computes
            if node.target in GEMMS:
                assert root(node) is node

    def inner(module, is_backward):
        name = "backward" if is_backward else "forward"
        seen[name] = [(g.site.key, g.bias is not None) for g in annotated(module.graph)]
        return module.forward

    def backend(gm, inputs):
        return compat.capture(gm, inputs, joint=joint, inner=inner)

    torch.compile(Net(), backend=backend)(torch.randn(13, 12))
    assert len(seen["forward"]) == 8
    # The two products with `mix` have one gradient: AOTAutograd merges equal nodes when it partitions.
    merged = ("self#0:grad_input", False)
    assert Counter(seen["joint"]) - Counter([merged]) == Counter(seen["forward"] + seen["backward"])


def test_unflip_sees_through_every_transpose():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return x.t(), x.t().t(), x.transpose(-1, -2), x.permute(1, 0), x.permute(0, 1), x.mT.mT.mT

    graph = make_fx(function, tracing_mode="fake")(torch.randn(3, 4)).graph
    (x,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    flips = [unflip(node) for node in out.args[0]]
    assert flips[:4] == [(x, True), (x, False), (x, True), (x, True)]
    assert flips[5] == (x, True)
    batched = make_fx(lambda y: (y.transpose(1, 2), y.permute(1, 0, 2), y.transpose(0, 1)), tracing_mode="fake")
    graph = batched(torch.randn(2, 3, 4)).graph
    (y,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    assert [unflip(node) == (y, True) for node in out.args[0]] == [True, False, False]
    views = lambda y: (y.mT.expand(2, 4, 3).reshape(2, 4, 3), y.expand(2, 3, 4).view(2, 4, 3))  # noqa: E731
    graph = make_fx(views, tracing_mode="fake")(torch.randn(2, 3, 4)).graph
    (y,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    assert [unflip(node) == (y, True) for node in out.args[0]] == [True, False]


def test_operands_know_their_tensor_and_what_made_it(sites_of):
    first, second = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)

    def model(x):
        x = torch.relu(x)
        return first(x), second(x), x.t() @ x, torch.tanh(x) @ torch.ones(12, 3)

    a, b, gram, signed = in_inference(sites_of, model, torch.randn(5, 12)).values()
    assert a.lhs == b.lhs == gram.rhs and a.lhs.producer == "relu.default" and a.lhs.nonnegative
    assert gram.lhs.tensor == gram.rhs.tensor and gram.lhs.flipped and not gram.rhs.flipped
    assert a.rhs.producer == "placeholder" and a.rhs.flipped and a.rhs.tensor != b.rhs.tensor
    assert signed.lhs.producer == "tanh.default" and not signed.lhs.nonnegative


@pytest.mark.parametrize(
    "function, nonnegative",
    [(torch.square, True), (lambda x: x**3, False), (lambda x: x.clamp(0, 1), True), (lambda x: x.clamp(-1, 1), False)],
)
def test_what_is_known_to_be_nonnegative(sites_of, function, nonnegative):
    (site,) = in_inference(sites_of, lambda x: function(x) @ torch.ones(12, 3), torch.randn(5, 12)).values()
    assert site.lhs.nonnegative == nonnegative
