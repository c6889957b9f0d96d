"""Random numbers op by op are those of Inductor's generated code."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import loka_compile as loka
from examples.apart import APART
from loka_compile import compat
from loka_compile.compat import draws

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def drawing(x):
    dropped = F.dropout(x, 0.3, True)
    return dropped, torch.rand(33, 5), torch.randint(-5, 2**30, (4000,)), torch.randn(1000, 70)


def op_by_op(gm, inputs):
    def inner(graph, is_backward):
        compat.draw_like_inductor(graph)
        return fx.Interpreter(graph).run

    return compat.capture(gm, inputs, joint=lambda graph: None, inner=inner)


def test_what_generated_code_draws():
    x = torch.randn(300, 256)
    outs, states = [], []
    for backend in ("inductor", op_by_op):
        torch.manual_seed(0)
        outs.append(torch.compile(drawing, backend=backend, **APART)(x))
        states.append(torch.get_rng_state())
    for ours, its in zip(*outs, strict=True):
        torch.testing.assert_close(ours, its, rtol=0, atol=1e-6 if its.dim() == 2 and len(its) == 1000 else 0)
    assert torch.equal(*states)


def dropping(x, p):
    noise = torch.rand_like(x)
    return F.dropout(x, 0.3, True), F.dropout(x, 0.1, True), noise < 0.4, torch.bernoulli(p), torch.rand_like(x) < p


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_generated_code_drops_in_16_bits(dtype):
    """It compares as drawn, in float32: of 300 x 256 numbers about a hundred are on the other side in bfloat16."""
    x, p, outs = torch.randn(300, 256).to(dtype), torch.rand(300, 256).to(dtype), []
    for backend in ("inductor", op_by_op):
        torch.manual_seed(0)
        outs.append(torch.compile(dropping, backend=backend, **APART)(x, p))
    for ours, its in zip(*outs, strict=True):
        assert torch.equal(ours, its)


@pytest.mark.parametrize("size", [(), (0, 3), (draws._CHUNK + 1,)])
def test_any_size(size):
    seed = torch.tensor(-5)
    uniform, normal = (draws._random(size, seed, mode) for mode in ("rand", "randn"))
    assert uniform.shape == normal.shape == size
    assert torch.equal(uniform, draws._random(size, seed, "rand")) and bool(((uniform >= 0) & (uniform < 1)).all())
    if uniform.numel() > 1:
        assert abs(uniform.mean() - 0.5) < 0.01 and abs(normal.std() - 1) < 0.02


def test_a_model_drops_the_same_before_and_after_it_is_planned(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model, x = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5)), torch.randn(64, 32)
    options = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
    compiled, dropped = torch.compile(model, backend="loka", options=options), []
    for _ in range(5):
        torch.manual_seed(3)
        dropped.append(compiled(x) == 0)
    assert loka.plan(compiled).lowered and 0.4 < dropped[0].float().mean() < 0.6
    assert all(torch.equal(each, dropped[0]) for each in dropped)
