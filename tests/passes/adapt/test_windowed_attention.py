"""Windowed attention: the numbers of full attention under a band, forward and backward, and why an attention stays."""

from __future__ import annotations

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
from loka_compile.kernels.gdpa import gdpa
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.passes.dynamo import run_on_dynamo

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

ATTENTION = F.scaled_dot_product_attention
B, H, D = 3, 2, 4


def tensors(t, b=B, dtype=torch.float64):
    return [torch.randn(b, H, t, D, dtype=dtype, requires_grad=True) for _ in range(3)]


def band(t, window, causal=False):
    away = torch.arange(t)[:, None] - torch.arange(t)
    return (away.abs() <= window) & (away >= 0 if causal else True)


def windowed(fn, windows, *args, dynamic=None, whole=None):
    """Output of one call with the pass on the graph; graph before, graph after, result."""
    found = []

    def backend(gm, _):
        part = compat.is_whole(gm) if whole is None else whole
        changed, (change,) = run_on_dynamo(gm, (WindowedAttention(windows, part),))
        found.append((gm.graph, changed.graph, change.result))
        return changed.forward

    out = torch.compile(fn, backend=backend, dynamic=dynamic, **APART)(*args)
    return out, found


def same(out, expected, inputs):
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((o * weight).sum(), inputs) for o in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=16, deadline=None)
@given(
    t=st.integers(3, 40),
    window=st.integers(1, 9),
    causal=st.booleans(),
    dynamic=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    mask=st.sampled_from([None, "bool", "float"]),
    heads=st.sampled_from([1, H]),
)
def test_the_numbers_are_those_of_a_band(t, window, causal, dynamic, scale, mask, heads):
    torch._dynamo.reset()
    if causal and mask:
        mask = None  # torch refuses both
    if t <= window + 1:
        t = window + 2
    q, k, v = tensors(t)
    keys, full = None, torch.zeros(t, t, dtype=torch.float64).masked_fill(~band(t, window, causal), float("-inf"))
    if mask:
        keep = torch.rand(B, heads, 1, t) < 0.8
        keep[..., ::2] = True  # a window of at least 1 finds one
        keys = keep if mask == "bool" else torch.randn(B, heads, 1, t, dtype=torch.float64)
        full = full.masked_fill(~keep, float("-inf")) if mask == "bool" else full + keys
    run = lambda q, k, v, keys: ATTENTION(q, k, v, attn_mask=keys, is_causal=causal, scale=scale)  # noqa: E731
    out, [(_, _, result)] = windowed(run, {"**": window}, q, k, v, keys, dynamic=dynamic or None)
    assert len(result.rewrites) == 2 and not result.rejects
    same(out, ATTENTION(q, k, v, attn_mask=full, scale=scale), (q, k, v))


def test_rows_without_a_key_are_zero_as_torch_has_them():
    q, k, v = tensors(40)
    keep = torch.zeros(B, 1, 1, 40, dtype=torch.bool)
    keep[..., :3] = True  # a short sequence, padded: far rows see nothing in their window
    run = lambda q, k, v: ATTENTION(q, k, v, attn_mask=keep)  # noqa: E731
    out, _ = windowed(run, {"**": 5}, q, k, v)
    assert torch.equal(out[:, :, 20:], torch.zeros_like(out[:, :, 20:]))
    same(out, ATTENTION(q, k, v, attn_mask=keep & band(40, 5)), (q, k, v))


def test_flops_fall_with_the_window():
    q, k, v = tensors(512)
    _, [(_, _, result)] = windowed(lambda q, k, v: ATTENTION(q, k, v), {"**": 64}, q, k, v)
    before = 2 * 2 * B * H * 512 * 512 * D
    did = result.rewrites[-1].did
    assert did.startswith("65.6%") and f"({before:,} to {before * 22 // 64:,}" in did


def test_many_blocks_are_not_written_out():
    q, k, v = tensors(70)
    out, [(_, after, _)] = windowed(lambda q, k, v: ATTENTION(q, k, v), {"**": 2}, q, k, v)
    assert sum(node.target is ATTENTION for node in after.nodes) == 1
    same(out, ATTENTION(q, k, v, attn_mask=band(70, 2)), (q, k, v))


def test_one_graph_holds_for_every_length():
    counter = [0]

    def backend(gm, _):
        counter[0] += 1
        return run_on_dynamo(gm, (WindowedAttention({"**": 4}),))[0].forward

    compiled = torch.compile(lambda q, k, v: ATTENTION(q, k, v), backend=backend, dynamic=True)
    for t, b in ((31, 3), (64, 5), (6, 7), (97, 2)):
        q, k, v = tensors(t, b)
        torch.testing.assert_close(compiled(q, k, v), ATTENTION(q, k, v, attn_mask=band(t, 4)))
    assert counter == [1]


# ---------------------------------------------------------------- in a model


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(H * D, 3 * H * D), nn.Linear(H * D, H * D)

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        mask = None if window is None else band(x.shape[1], window)
        return x + self.out(ATTENTION(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": Attention()}) for _ in range(3))

    def forward(self, x: Tensor, windows=(None, None, None)) -> Tensor:
        for layer, window in zip(self.layers, windows, strict=True):
            x = layer["attention"](x, window)
        return x


@pytest.mark.parametrize(
    ("option", "windows"),
    [
        (4, (4, 4, 4)),
        ({"layers.*.attention": 5}, (5, 5, 5)),
        pytest.param({"layers.1": 3, "layers.2.attention": 6}, (None, 3, 6), marks=pytest.mark.slow),
        ({"layers.1.attention": 2, "**": 7}, (7, 2, 7)),
    ],
)
def test_windows_by_module_in_training(option, windows, op_by_op):
    model, x = Stack().double(), torch.randn(B, 29, H * D, dtype=torch.float64)
    compiled = torch.compile(model, backend="loka", options={"window": option, "recipes": ()})
    out, expected = compiled(x), model(x, windows)
    torch.testing.assert_close(out, expected)
    found, wanted = [torch.autograd.grad(o.square().sum(), list(model.parameters())) for o in (out, expected)]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert "windowed_attention CHANGED THE MODEL: window" in " ".join(str(loka.explain(compiled)).split())


def test_twice_is_once_and_nothing_is_nothing():
    def backend(gm, _):
        once, _ = run_on_dynamo(gm, (WindowedAttention({"**": 4}),))
        twice, (change,) = run_on_dynamo(once, (WindowedAttention({"**": 4}),))
        assert not change.result.rewrites and not change.result.rejects
        assert [n.target for n in once.graph.nodes] == [n.target for n in twice.graph.nodes]
        return twice.forward

    torch.compile(Stack(), backend=backend)(torch.randn(B, 29, H * D))
    x = torch.randn(B)
    out, [(before, after, result)] = windowed(lambda x: x.cos() * 2, {"**": 4}, x)
    assert torch.equal(out, x.cos() * 2) and result.rewrites == result.rejects == ()
    assert [n.name for n in before.nodes] == [n.name for n in after.nodes]


def test_a_graph_break_leaves_each_part_its_attention():
    def broken(q, k, v):
        v = ATTENTION(q, k, v)
        torch._dynamo.graph_break()
        return ATTENTION(q, k, v)

    q, k, v = tensors(31)
    out, found = windowed(broken, {"**": 3}, q, k, v)
    assert [len(result.rewrites) for _, _, result in found] == [2, 2]
    one = lambda v: ATTENTION(q, k, v, attn_mask=band(31, 3))  # noqa: E731
    same(out, one(one(v)), (q, k, v))


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda q, k, v: ATTENTION(q[:, :, :9], k, v), "9 queries look at 31 keys"),
        (lambda q, k, v: ATTENTION(q, k, v, dropout_p=0.5), "dropout_p = 0.5"),
        (lambda q, k, v: ATTENTION(q, k, v, attn_mask=q @ k.mT), r"its mask is \(3, 2, 31, 31\)"),
        (lambda q, k, v: ATTENTION(q[:, :, :5], k[:, :, :5], v[:, :, :5]), "a window of 4 covers all 5 positions"),
        (lambda q, k, v: ATTENTION(q[:, 0], k[:, 0], v[:, 0]), r"its queries are \(3, 31, 4\)"),
        (lambda q, k, v: ATTENTION(q, k[:, :1], v[:, :1], enable_gqa=True), "differ in batch or heads"),
    ],
    ids=["lengths", "dropout", "bias", "short", "3d", "gqa"],
)
def test_what_stays_and_why(call, reason):
    _, [(before, after, result)] = windowed(call, {"**": 4}, *tensors(31))
    assert [n.name for n in before.nodes] == [n.name for n in after.nodes] and not result.rewrites
    [reject] = result.rejects
    assert re.search(reason, reject.reason), reject.reason


def test_gdpa_is_given_its_own_window():
    def run(q, k, v, seqlens):
        rest = 31, 31, "gelu", 1.0, False
        whole = torch.ops.loka.gdpa(q, k, v, None, None, *rest, -1)
        jagged = torch.ops.loka.gdpa(*(x[0].transpose(0, 1) for x in (q, k, v)), seqlens, seqlens, *rest, -1)
        return whole, jagged, torch.ops.loka.gdpa(q, k[:, :, :5], v[:, :, :5], None, None, 31, 5, *rest[2:], -1)

    assert gdpa  # its module registers the operator
    q, k, v = (torch.randn(B, H, 31, 64) for _ in range(3))
    seqlens = torch.tensor([0, 20, 31], dtype=torch.int32)
    out, [(_, after, result)] = windowed(run, {"**": 4}, q, k, v, seqlens)
    assert [n.args[-1] for n in after.nodes if "gdpa" in str(n.target)] == [4, 4, -1]
    assert "31 queries look at 5 keys" in result.rejects[0].reason or "different" in result.rejects[0].reason
    torch.testing.assert_close(out[0], F.gelu((q @ k.mT) * band(31, 4)) @ v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "64", {}, {"layers": 0}, {3: 4}])
def test_a_bad_window(value):
    with pytest.raises(loka.OptionsError, match="window: expected"):
        loka.Options(window=value)


def test_a_pattern_that_matches_nothing():
    with pytest.raises(Exception, match=r"no module is called layers.\*.atention .nearest: 'layers...attention'"):
        windowed(Stack(), {"layers.*.atention": 4}, torch.randn(B, 29, H * D))
