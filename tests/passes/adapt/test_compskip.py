"""CompSkip: the numbers of the model with the work taken out by hand, for Kunlun's rule and for any schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.dynamo import run_on_dynamo
from loka_compile.spec.compskip import CompSkip
from tests.passes.adapt.sequences import KEYS, B, D, Layer, Sequences, Stack, T, inputs, skipped, subjects

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# ---------------------------------------------------------------- Kunlun's rule


@pytest.mark.parametrize("dynamic", [None, True])
def test_alternate_is_kunluns_rule(dynamic):
    model, (x, s) = Sequences(), inputs()
    out, [(before, after, result)] = skipped(model, "alternate", x, s, dynamic=dynamic)
    torch.testing.assert_close(out, model.alternating(x, s))
    done, left = subjects(result)
    assert not left
    schedule = {"layers": "layers.*", "skip": {"even": ["attention"], "odd": ["pffn"]}, "reuse": {"odd": ["pool"]}}
    *parts, total = done
    assert CompSkip.of(total) == CompSkip(**schedule)
    assert {path: done[path] for path in parts} == {
        "layers.0.attention": "skipped",
        "layers.2.attention": "skipped",
        "layers.1.pffn": "skipped",
        "layers.3.pffn": "skipped",
        "layers.1.pool": "reuses the value of layers.0.pool",
        "layers.3.pool": "reuses the value of layers.2.pool",
    }
    calls = lambda graph: sum(n.target is F.scaled_dot_product_attention for n in graph.nodes)  # noqa: E731
    assert (calls(before), calls(after)) == (8, 3)  # 1 attention, 2 poolings: nobody reads the last layer's sequence


def test_flops_are_counted_on_the_graph():
    # per layer: pffn 2 linears + 2 products, attention qkv + 2 products + out, pool 1 linear + 2 products, interaction
    pffn = 2 * 2 * B * D * KEYS * D + 2 * 2 * B * T * KEYS * D
    attention = 2 * B * T * D * 3 * D + 2 * 2 * B * T * T * D + 2 * B * T * D * D
    pool, interaction = 2 * B * T * D * D + 2 * 2 * B * 2 * T * D, 2 * B * D * D
    before = 4 * (pffn + attention + pool + interaction) + 2 * B * D
    after = before - 3 * attention - 2 * pffn - 2 * pool  # without its pool, the last layer's sequence leads nowhere
    _, [(_, _, result)] = skipped(Sequences(), "alternate", *inputs())
    assert f"({before:,} to {after:,}, counted on the graph)" in result.rewrites[-1].did
    assert result.rewrites[-1].did.startswith(f"{1 - after / before:.1%} of the forward's FLOPs are gone")


def test_in_training_the_gradients_are_the_skipped_models(op_by_op):
    torch.manual_seed(0)
    model, (x, s) = Sequences().double(), inputs(torch.float64)
    compiled = torch.compile(model, backend="loka", options={"compskip": "alternate", "recipes": ()})
    out = compiled(x, s)
    out.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    expected = model.alternating(x, s)
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (found[name] is None) == (parameter.grad is None), name  # what is skipped has no gradient at all
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad)
    text = " ".join(str(loka.explain(compiled)).split())
    assert "compskip CHANGED THE MODEL: skipped: layers.0.attention" in text and "FLOPs are gone" in text


class Broken(Sequences):
    def forward(self, x, s):
        for number in (0, 1):
            x, s = self.layers[number](x, s)
        torch._dynamo.graph_break()
        for number in (2, 3):
            x, s = self.layers[number](x, s)
        return self.head(x)


def test_a_graph_break_leaves_each_part_what_is_in_it():
    model, (x, s) = Broken(), inputs()
    out, found = skipped(model, "alternate", x, s)
    torch.testing.assert_close(out, model.alternating(x, s))
    assert [len(result.rewrites) for _, _, result in found] == [4, 4] and not found[0][2].rejects
    out, found = skipped(model, {"layers": "layers.*", "reuse": {"2:": ["pool"]}}, x, s)
    done, left = [subjects(result) for _, _, result in found][1]
    assert left == {"layers.2.pool": "no earlier layer of this graph has one"}
    assert done["layers.3.pool"] == "reuses the value of layers.2.pool"


def test_layers_in_frames_of_their_own_are_not_known_and_that_is_said():
    class Loop(Sequences):
        def forward(self, x, s):
            for layer in self.layers:
                torch._dynamo.graph_break()  # Dynamo leaves a loop with a break to Python, and compiles its calls
                x, s = layer(x, s)
            return self.head(x)

    model, (x, s) = Loop(), inputs()
    out, found = skipped(model, {"layers": "layers.*", "skip": {"even": ["attention"]}}, x, s)
    assert torch.equal(out, model(x, s))
    assert all("no module is a layer layers.*" in result.rejects[0].reason for _, _, result in found)


def test_sources_with_stacks_of_their_own():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            one = lambda: nn.ModuleDict({"a": Layer(), "b": Layer()})  # noqa: E731
            self.layers = nn.ModuleList(nn.ModuleDict({"sources": one()}) for _ in range(2))

        def forward(self, x, s, skip=False):
            kept = {}
            streams = {"a": s, "b": s.flip(1)}
            for number, layer in enumerate(self.layers):
                total = 0
                for name, source in layer["sources"].items():
                    if not (skip and number % 2):
                        streams[name] = source.pffn(x, streams[name])
                    if not (skip and number % 2 == 0):
                        streams[name] = source.attention(streams[name])
                    kept[name] = kept[name] if skip and number % 2 else source.pool(streams[name])
                    total = total + kept[name].mean(1)
                x = x + total
            return x

    model, (x, s) = Many(), inputs()
    out, [(_, _, result)] = skipped(model, "alternate", x, s)
    torch.testing.assert_close(out, model(x, s, skip=True))
    assert len(result.rewrites) == 7
    schedule = {
        "layers": "layers.*",
        "skip": {"even": ["sources.*.attention"], "odd": ["sources.*.pffn"]},
        "reuse": {"odd": ["sources.*.pool"]},
    }
    again, _ = skipped(model, schedule, x, s)
    assert torch.equal(again, out)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_schedule_of_a_residual_stack(data):
    torch._dynamo.reset()
    depth = data.draw(st.integers(1, 4))
    gone = data.draw(st.sets(st.sampled_from([f"{n}.{b}" for n in range(depth) for b in ("mix", "ffn")]), min_size=1))
    skip = {}
    for each in gone:
        number, branch = each.split(".")
        skip.setdefault(number, []).append(branch)
    model, x = Stack(depth).double(), torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    out, [(_, after, result)] = skipped(model, {"layers": "blocks.*", "skip": skip}, x)
    expected = model(x, gone)
    torch.testing.assert_close(out, expected)
    assert not result.rejects and len(result.rewrites) == len(gone) + 1
    [found], [wanted] = torch.autograd.grad((out * out).sum(), x), torch.autograd.grad((expected * expected).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert sum(n.target is F.linear or n.target is torch._C._nn.linear for n in after.nodes) == 2 * depth - len(gone)


def test_dropout_goes_with_its_branch_and_it_is_said():
    model, x = Stack(2, dropout=0.5), torch.randn(B, D)
    out, [(_, _, result)] = skipped(model, {"layers": "blocks.*", "skip": {"all": ["mix"]}}, x)
    torch.testing.assert_close(out, model(x, {"0.mix", "1.mix"}))  # nothing random is left
    model, (x, s) = Sequences(dropout=0.5), inputs()
    _, [(_, _, result)] = skipped(model, {"layers": "layers.*", "skip": {"all": ["attention"]}}, x, s)
    assert subjects(result)[0]["layers.0.attention"] == "skipped, its dropout too"


def test_a_value_is_reused_through_several_layers():
    model, (x, s) = Sequences(3), inputs()
    _, [(_, after, result)] = skipped(model, {"layers": "layers.*", "reuse": {"1:": ["pool"]}}, x, s)
    done, _ = subjects(result)
    assert done["layers.2.pool"] == "reuses the value of layers.1.pool"  # which is that of layer 0
    assert sum("pool" in n.name for n in after.nodes if n.op == "placeholder" and n.users) == 3  # seeds, weight, bias


def test_what_is_written_in_place_stays_apart():
    class InPlace(Stack):
        def forward(self, x, gone=frozenset()):
            for number, block in enumerate(self.blocks):
                if f"{number}.mix" not in gone:
                    y = x + block["mix"](x)
                else:
                    y = x.clone()
                y += block["ffn"](y)
                x = y * 2 + x  # x must not have been written
            return x

    model, x = InPlace(2), torch.randn(B, D)
    kept = x.clone()
    out, [(_, _, result)] = skipped(model, {"layers": "blocks.*", "skip": {"all": ["mix"]}}, x)
    torch.testing.assert_close(out, model(x, {"0.mix", "1.mix"}))
    assert torch.equal(x, kept) and len(result.rewrites) == 3


def test_twice_is_once():
    seen = []

    def backend(gm, _):
        once, (first,) = run_on_dynamo(gm, (Skip("alternate"),))
        twice, (second,) = run_on_dynamo(once, (Skip("alternate"),))
        seen.append((first.result, second.result))
        assert [n.target for n in once.graph.nodes] == [n.target for n in twice.graph.nodes]
        return twice.forward

    torch.compile(Sequences(), backend=backend)(*inputs())
    [(first, second)] = seen
    assert first.rewrites and not second.rewrites and not second.rejects
