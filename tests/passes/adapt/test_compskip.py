"""CompSkip: the numbers of the model with the work taken out by hand, and a reason for all that is not proven."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import loka_compile as loka
from examples.apart import APART
from loka_compile import compat
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.dynamo import run_on_dynamo
from loka_compile.spec.compskip import CompSkip, chosen

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, T, D, KEYS = 5, 11, 8, 3  # a prime batch


class Attention(nn.Module):
    """x + W MHA(norm(x))"""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.qkv, self.out, self.drop = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D), dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        out = self.out(heads.transpose(1, 2).flatten(2))
        return x + (F.dropout(out, self.drop, self.training) if self.drop else out)


class PFFN(nn.Module):
    """act(s K(x)) V(x) + s, weights from the context"""

    def __init__(self):
        super().__init__()
        self.k, self.v = nn.Linear(D, KEYS * D), nn.Linear(D, KEYS * D)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        k, v = self.k(x).unflatten(-1, (KEYS, D)), self.v(x).unflatten(-1, (KEYS, D))
        return F.gelu(s @ k.mT) @ v + s


class Pool(nn.Module):
    def __init__(self, tokens=2):
        super().__init__()
        self.seeds, self.kv = nn.Parameter(torch.randn(tokens, D)), nn.Linear(D, D)

    def forward(self, s: Tensor) -> Tensor:
        kv = self.kv(s)
        return F.scaled_dot_product_attention(self.seeds.expand(s.shape[0], -1, -1), kv, kv)


class Layer(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.pffn, self.attention, self.pool, self.interaction = PFFN(), Attention(dropout), Pool(), nn.Linear(D, D)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = self.attention(self.pffn(x, s))
        return x + self.interaction(x + self.pool(s).mean(1)), s


class Sequences(nn.Module):
    """A small Kunlun: a context x, a sequence s."""

    def __init__(self, layers=4, dropout=0.0):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer(dropout) for _ in range(layers)), nn.Linear(D, 1)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        for layer in self.layers:
            x, s = layer(x, s)
        return self.head(x)

    def alternating(self, x: Tensor, s: Tensor) -> Tensor:
        """Kunlun's rule by hand."""
        for number, layer in enumerate(self.layers):
            if number % 2 == 0:
                s = layer.pffn(x, s)
                summary = layer.pool(s)
            else:
                s = layer.attention(s)
            x = x + layer.interaction(x + summary.mean(1))
        return self.head(x)


def inputs(dtype=torch.float32):
    return torch.randn(B, D, dtype=dtype), torch.randn(B, T, D, dtype=dtype)


def skipped(model, schedule, *args, dynamic=None, whole=None):
    """Output of one call with the pass on every graph, and (graph before, graph after, result) of each."""
    found = []

    def backend(gm, _):
        part = compat.is_whole(gm) if whole is None else whole
        changed, (change,) = run_on_dynamo(gm, (Skip(CompSkip.of(schedule), part),))
        found.append((gm.graph, changed.graph, change.result))
        return changed.forward

    return torch.compile(model, backend=backend, dynamic=dynamic, **APART)(*args), found


def subjects(result):
    return {r.site: r.did for r in result.rewrites}, {r.site: r.reason for r in result.rejects}


def refused(model, schedule, *args):
    """The one reason, where the schedule skips one branch."""
    _, [(before, after, result)] = skipped(model, schedule, *args)
    assert [n.name for n in before.nodes] == [n.name for n in after.nodes] and not result.rewrites
    [reject] = result.rejects
    return reject.reason


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


# ---------------------------------------------------------------- any schedule


class Stack(nn.Module):
    """Pre-norm blocks, residuals written around the branches."""

    def __init__(self, depth, dropout=0.0):
        super().__init__()
        self.blocks, self.dropout = nn.ModuleList(self.block() for _ in range(depth)), dropout

    @staticmethod
    def block():
        return nn.ModuleDict({"norm": nn.LayerNorm(D), "mix": nn.Linear(D, D), "ffn": nn.Linear(D, D)})

    def forward(self, x, gone=frozenset()):
        for number, block in enumerate(self.blocks):
            if f"{number}.mix" not in gone:
                branch = 0.5 * block["mix"](block["norm"](x))
                x = x + (F.dropout(branch, self.dropout, self.training) if self.dropout else branch)
            if f"{number}.ffn" not in gone:
                x = block["ffn"](x) + x
        return x


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


# ---------------------------------------------------------------- what is refused


ONE = {"layers": "blocks.*", "skip": {"0": ["branch"]}}


class One(nn.Module):
    """One block whose branch is called as `forward` says; the branch is a linear unless given."""

    def __init__(self, forward, branch=None):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"branch": branch or nn.Linear(D, D)})])
        self.call = forward

    def forward(self, x):
        return self.call(self.blocks[0]["branch"], x)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1.0)
        return x + x.tanh()


class Two(nn.Module):
    def forward(self, x):
        return x + x.tanh(), x.sin()


class Doubled(nn.Module):
    def forward(self, x):
        return x.double().tanh()


def with_consumer(branch, x):
    y = branch(x)
    return x + y, y.sum()


@pytest.mark.parametrize(
    ("forward", "branch", "reason"),
    [
        (lambda m, x: m(x), None, "other consumers than a residual add|no residual add"),
        (with_consumer, None, "linear has other consumers than a residual add: add|y has other consumers"),
        (lambda m, x: x + m(x).relu(), None, r"goes into relu \(relu\)"),
        (lambda m, x: x.cos() + m(x), None, "which is not its own input"),
        (lambda m, x: (y := x[:, :1]) + m(y), nn.Linear(1, D), r"is \(5, 1\), .* is \(5, 8\)"),
        (lambda m, x: x + m(x), Doubled(), "is torch.float32 on cpu, .* is torch.float64"),
        (lambda m, x: m(x), Buffered(), "writes into"),
        (lambda m, x: torch.cat(m(x)), Two(), "2 of its values are read outside"),
        (lambda m, x: x + m(x), nn.BatchNorm1d(D, track_running_stats=True), "add_ writes into .*num_batches_tracked"),
    ],
    ids=["no add", "consumer", "relu", "foreign", "broadcast", "dtype", "buffer", "two values", "batch norm"],
)
def test_what_is_not_proven_is_refused(forward, branch, reason):
    found = refused(One(forward, branch), ONE, torch.randn(B, D))
    assert re.search(reason, found), found


def test_a_reuse_of_another_shape_is_refused():
    model, (x, s) = Sequences(2), inputs()
    model.layers[1].pool = Pool(tokens=3)
    _, [(_, _, result)] = skipped(model, {"layers": "layers.*", "reuse": {"1": ["pool"]}}, x, s)
    [reject] = result.rejects
    assert "is (5, 2, 8)" in reject.reason and "is (5, 3, 8)" in reject.reason


def test_layers_side_by_side_have_nothing_to_reuse():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D)])

        def forward(self, x, s):
            return self.experts[0](x).sum() + self.experts[1](s[:, 0]).sum()

    class Wrapped(Experts):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(D, D)) for _ in range(2)])

    _, [(_, _, result)] = skipped(Wrapped(), {"layers": "experts.*", "reuse": {"1": ["0"]}}, *inputs())
    assert "side by side" in result.rejects[0].reason


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"layers": "blocks.*", "skip": {"even": ["attention"]}}, r"is a layer blocks.\* .nearest: 'layers.\*'"),
        ({"layers": "layers.*", "skip": {"even": ["atention"]}}, "contains a module 'atention' .nearest: 'attention'"),
        ({"layers": "layers.*", "skip": {"7": ["attention"]}}, "'7' matches none of the layers 0, 1, 2, 3"),
        ({"layers": "layers.*", "reuse": {"0": ["pool"]}}, "pool: no layer before 0 has such"),
        ({"layers": "layers.*", "skip": {"all": ["pool"]}, "reuse": {"odd": ["pool"]}}, "both skipped and reused"),
    ],
)
def test_a_wrong_schedule_is_an_error(schedule, message, op_by_op):
    compiled = torch.compile(Sequences(), backend="loka", options={"compskip": schedule, "recipes": ()})
    with pytest.raises(Exception, match=message) as caught:
        compiled(*inputs())
    assert isinstance(getattr(caught.value, "inner_exception", caught.value), loka.OptionsError)


def test_alternate_says_what_it_could_not_find():
    with pytest.raises(Exception, match=r"expected one list of two or more layers.*none among blocks\.\*"):
        skipped(Stack(2), "alternate", torch.randn(B, D))


def test_alternate_refuses_between_two():
    class Twice(Layer):
        def __init__(self):
            super().__init__()
            self.attention_b = Attention()

        def forward(self, x, s):
            s = self.attention_b(self.attention(self.pffn(x, s)))
            return x + self.pool(s).mean(1), s

    model = Sequences(2)
    model.layers = nn.ModuleList([Twice(), Twice()])
    with pytest.raises(Exception, match="attention, attention_b could all be the attention of a layer"):
        skipped(model, "alternate", *inputs())


# ---------------------------------------------------------------- the schedule itself


def test_a_schedule_reads_back():
    schedule = CompSkip("blocks.*", {"even": ["a", "b.c"], 3: ["d"]}, {"1::2": ["e"]})
    assert CompSkip.of(str(schedule)) == CompSkip.of(schedule.as_dict()) == CompSkip.of(schedule) == schedule
    assert json.loads(str(schedule))["skip"] == {"even": ["a", "b.c"], "3": ["d"]}
    assert loka.Options(compskip=schedule.as_dict()).compskip == schedule and hash(schedule)


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("even", [0, 2, 4]),
        ("odd", [1, 3, 5]),
        ("3", [3]),
        ("0,4", [0, 4]),
        ("2:", [2, 3, 4, 5]),
        ("1::3", [1, 4]),
        (":2,5", [0, 1, 5]),
    ],
)
def test_which_layers(which, numbers):
    assert [number for number in range(6) if chosen(which, number)] == numbers


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("alternating", "nearest: 'alternate'"),
        (2, "expected 'alternate', a schedule or None; got 2"),
        ("{", "expected a schedule as JSON"),
        ({"layers": "blocks.*"}, "skips nothing and reuses nothing"),
        ({"skip": {"even": ["a"]}}, 'needs "layers"'),
        ({"layers": "blocks", "skip": {"even": ["a"]}}, "with \\* for the layer's number"),
        ({"layers": "b.*", "skip": {"evn": ["a"]}}, "got 'evn' .nearest: 'even'"),
        ({"layers": "b.*", "skip": {"::0": ["a"]}}, "got '::0'"),
        ({"layers": "b.*", "skip": {"even": "a"}}, r"write \['a'\]"),
        ({"layers": "b.*", "skip": {"even": []}}, "expected a list of paths"),
        ({"layers": "b.*", "skips": {"even": ["a"]}}, "has no 'skips' .nearest: 'skip'"),
        ({"layers": "b.*", "skip": {"even": ["a"]}, "reuse": {"even": ["a"]}}, "both skipped and reused"),
    ],
)
def test_a_bad_schedule(value, message):
    with pytest.raises(loka.OptionsError, match=message):
        loka.Options(compskip=value)
