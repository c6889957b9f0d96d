"""fuse_cast on graphs written by hand: rows alone, columns alone, through views, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from loka_compile.kernels.norm_quantize.norm_quantize_backward import norm_quantize_backward
from loka_compile.kernels.quantize.quantize import quantize
from loka_compile.passes import Context
from loka_compile.passes.post_grad.fuse_cast import FuseCast
from tests.helpers import count_ops, speak_of, sqnr_db
from tests.passes.post_grad.test_fuse_backward import NOTHING, D
from tests.passes.post_grad.test_fuse_cast import BOTH, E4M3, E5M2, IN_ONE, ROWS

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "with_fp8")]


def rewritten(function, norm="rms", rows=32, weight=True):
    """(graph, what the pass returned) of function(gradient, wide, of its x), the gradient behind a norm."""

    def whole(grad, x, statistics, w):
        out = norm_quantize_backward(
            grad, x, statistics, w if weight else None, None, norm, 0, "relu", torch.bfloat16, False, False, 1.0
        )
        return function(out[0]), out[4]

    x, statistics = torch.randn(rows, D, dtype=torch.bfloat16), torch.rand(rows, int(norm == "rms"))
    args = torch.randn_like(x), x, statistics, torch.ones(D, dtype=torch.bfloat16)
    gm = make_fx(whole, tracing_mode="fake")(*args)
    before = gm(*args)
    result = FuseCast()(gm.graph, Context(NOTHING, "cuda"))
    gm.recompile()
    after = gm(*args)
    for new, old in zip(torch.utils._pytree.tree_leaves(after), torch.utils._pytree.tree_leaves(before), strict=True):
        assert new.dtype == old.dtype and new.shape == old.shape
        assert not new.numel() or sqnr_db(new.float(), old.float()) > 25
    return gm.graph, result


def test_one_rounding_less():
    """What is quantized was not rounded to bfloat16 before: no farther from float64's gradient, by rows and columns."""
    torch.manual_seed(0)
    grad, x, w = torch.randn(512, D).bfloat16(), torch.randn(512, D).bfloat16(), (1 + torch.randn(D) / 4).bfloat16()
    statistics = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-5)
    args = grad, x, statistics, w, None, "rms", 0, "gelu"
    wider = *(each.double() for each in args[:4]), *args[4:]
    exact = norm_quantize_backward(*wider, torch.float64, False, False, 1.0)[0]
    wide = norm_quantize_backward(*args, torch.bfloat16, False, False, 1.0)[0]
    out, scale, copied, copied_scale, *_ = norm_quantize_backward(*args, E4M3, True, False, 1.0)
    for (q, s), axis in (((out, scale), -1), ((copied.t(), copied_scale.t()), -2)):
        twice, step = quantize(wide, E4M3, "row", axis)
        assert sqnr_db(q.double() * s, exact) > sqnr_db(twice.double() * step, exact) - 0.01


def test_rows_alone_leave_no_copy():
    graph, result = rewritten(lambda g: quantize(g, E5M2, "row", -1))
    assert [each.did for each in result.rewrites] == [ROWS]
    assert count_ops(graph)["loka.quantize"] == 0
    [made] = graph.find_nodes(op="call_function", target=torch.ops.loka.norm_quantize_backward.default)
    assert made.args[8:10] == (E5M2, False)


def test_columns_alone_and_through_views_and_transposes():
    graph, result = rewritten(lambda g: quantize(g.view(8, 4, D).view(32, D).t(), E4M3, "row", -1))
    assert [each.did for each in result.rewrites] == [BOTH] and count_ops(graph)["loka.quantize"] == 0
    graph, result = rewritten(lambda g: (quantize(g.t(), E4M3, "row", -2), quantize(g, E4M3, "row", -2)))
    assert [each.did for each in result.rewrites] == [BOTH] and count_ops(graph)["loka.quantize"] == 0


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda g: (quantize(g, E4M3, "row", -1), quantize(g, E5M2, "row", -2)), "torch.float8_e5m2"),
        (lambda g: (quantize(g, E4M3, "row", -1), g.view(8, 4, D).relu()), "read by relu"),
        (lambda g: (quantize(g, E4M3, "row", -1), g), "read by output"),
        (lambda g: quantize(g, torch.int8, "row", -1), "torch.int8"),
        (lambda g: quantize(g.view(8, 4, D), E4M3, "row", -1), "(8, 4, 64)"),
        (lambda g: quantize(g.view(16, 128), E4M3, "row", -1), "(16, 128)"),
    ],
)
def test_refusals_by_hand(function, word):
    _, result = rewritten(function)
    assert speak_of((each.reason for each in result.rejects), word) and not result.rewrites


def test_float64_stays():
    both = lambda x: (*quantize(x, E4M3, "row", -1), *quantize(x, E4M3, "row", -2))  # noqa: E731
    graph = make_fx(both)(torch.randn(32, D).double()).graph
    result = FuseCast()(graph, Context(NOTHING, "cuda"))
    assert speak_of((each.reason for each in result.rejects), "torch.float64") and not result.rewrites


def test_what_inductor_casts_on_the_way_stays():
    """A ReLU's gradient is point by point: it is computed again in each cast, two passes either way."""
    _, result = rewritten(lambda g: (quantize(g, E4M3, "row", -1), quantize(g, E4M3, "row", -2)), "none", weight=False)
    assert not result.rewrites and not result.rejects


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_and_none(rows):
    def both(x):
        return quantize(x, E4M3, "row", -1), quantize(x, E4M3, "row", -2)

    x = torch.randn(rows, D)
    gm = make_fx(both, tracing_mode="fake")(x)
    before = gm(x)
    assert [each.did for each in FuseCast()(gm.graph, Context(NOTHING, "cuda")).rewrites] == [IN_ONE]
    gm.recompile()
    for new, old in zip(torch.utils._pytree.tree_leaves(gm(x)), torch.utils._pytree.tree_leaves(before), strict=True):
        assert new.shape == old.shape and torch.equal(new.float(), old.float())
