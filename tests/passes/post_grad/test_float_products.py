from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from loka_compile.kernels.gemm import float_mm
from loka_compile.passes.base import Context, PassResult, run
from loka_compile.passes.post_grad.float_products import FloatProducts
from loka_compile.spec.plan import Plan

FASTER = replace(Context(Plan("cpu", {})), by_onednn=lambda sizes: sizes.M > 8)
pytestmark = pytest.mark.skipif(not float_mm.runs_here(), reason="this PyTorch has no oneDNN")


def test_a_training_step_runs_by_onednn_and_gives_the_same():
    torch.manual_seed(0)
    x, w, b = torch.randn(64, 48), torch.randn(32, 48, requires_grad=True), torch.randn(32, requires_grad=True)

    def step(x, w, b):
        out = torch.addmm(b, x, w.t(), alpha=2.0, beta=0.5)
        return out, *torch.autograd.grad(out.square().sum(), (w, b))

    gm = make_fx(step, tracing_mode="fake")(x, w, b)
    result = run(FloatProducts(), gm.graph, FASTER)
    gm.recompile()
    assert len(result.rewrites) == 2 and not result.rejects and gm.code.count("loka.float_mm") == 2
    for one, other in zip(gm(x, w, b), step(x, w, b), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_bias_that_does_not_count_is_not_read(alpha):
    """As addmm has it: with beta = 0 a NaN in the bias stays there."""
    x, w, bias = torch.randn(64, 48), torch.randn(48, 32), torch.full((32,), float("nan"))
    gm = make_fx(lambda *args: torch.addmm(*args, alpha=alpha, beta=0), tracing_mode="fake")(bias, x, w)
    assert len(run(FloatProducts(), gm.graph, FASTER).rewrites) == 1
    gm.recompile()
    torch.testing.assert_close(gm(bias, x, w), alpha * (x @ w), rtol=1e-4, atol=1e-4)


def test_what_stays_is_refused_only_where_its_sizes_are_not_known():
    def both(x, y):
        return x @ y.t(), x.bfloat16() @ y.t().bfloat16()

    gm = make_fx(both, tracing_mode="fake")(torch.randn(4, 16), torch.randn(8, 16))
    assert run(FloatProducts(), gm.graph, FASTER) == PassResult()
    gm = make_fx(lambda x, y: x @ y, tracing_mode="symbolic")(torch.randn(40, 16), torch.randn(16, 8))
    [reject] = run(FloatProducts(), gm.graph, FASTER).rejects
    assert "is for fixed sizes" in reject.reason


@pytest.mark.parametrize(
    "lay", [lambda x: x, lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, : x.shape[1]]]
)
def test_the_op_is_the_product_however_operands_lie(lay):
    a, b = torch.randn(33, 47), torch.randn(47, 21)
    out = float_mm.float_mm(lay(a), lay(b))
    assert out.is_contiguous()
    torch.testing.assert_close(out, a @ b, rtol=1e-4, atol=1e-5)
    torch.library.opcheck(torch.ops.loka.float_mm.default, (lay(a), lay(b)))


def test_generated_code_calls_it(fresh_dynamo, tmp_path, monkeypatch):
    from loka_compile.dispatch import timing

    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timing, "float_mm_pays", lambda sizes: True)
    model, x = nn.Linear(32, 16), torch.randn(64, 32)
    compiled = torch.compile(model, backend="loka", options={"recipes": (), "measure_calls": 0, "race": False})
    torch.testing.assert_close(compiled(x), model(x))
