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
from loka_compile.graph.nodes import root
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
