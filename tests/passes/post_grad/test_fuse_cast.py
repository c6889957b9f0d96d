"""FP8 training: what products read by rows and by columns is quantized by one op, with the same gradients.

The graphs are those of a CUDA device, run op by op here, where an op computes its reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from loka_compile.passes import PIPELINE, Context
from loka_compile.passes.post_grad.fuse_cast import FuseCast
from tests.helpers import skipped, sqnr_db
from tests.passes.post_grad.test_fuse_backward import NOTHING, D, loka_ops, run, stack

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "with_fp8")]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
B = 272  # the next multiple of 16 above a prime
ROWS = "quantized"
BOTH = "quantized by rows and, transposed, by columns"
IN_ONE = "quantized by rows and, transposed, by columns in one op"
WITH_NORM = "with its activation, quantized by rows and, transposed, by columns"
WITHOUT = PIPELINE.select({"fuse_cast": False})
UNLOWERED = PIPELINE.select({"lower": False})


@pytest.fixture
def in_fp8(plan_for):
    """in_fp8(model, recipe, roles): the model's linears in FP8 by loka's kernels, the others as they are."""

    def plan(
        model,
        recipe="fp8_rowwise",
        roles=("output", "grad_input", "grad_weight"),
        x=None,
        dtype=torch.bfloat16,
        provider="triton",
    ):
        x = torch.randn(B, D) if x is None else x
        model, x = copy.deepcopy(model).to(dtype), x.to(dtype).requires_grad_()
        only = lambda site: site.role in roles  # noqa: E731
        return plan_for(recipe, model, x, provider=provider, target="h100", only=only)

    return plan


def trained(model, x, plan, dtype=torch.bfloat16, **more):
    """As `run`; the batch is no symbol, which FP8 would have to be a multiple of 16."""
    return run(copy.deepcopy(model), x, dtype, plan, **{"dynamic": False, **more})


def found(captured, graph="backward"):
    """(what was done, what was refused)"""
    result = captured.results["fuse_cast", graph]
    return [each.did for each in result.rewrites], [each.reason for each in result.rejects]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_gradient_is_quantized_where_it_is_made(in_fp8, norm, bias):
    model = stack(norm, bias=bias)
    plan, x = in_fp8(model), torch.randn(B, D)
    captured, *_ = trained(model, x, plan)
    before, *_ = trained(model, x, plan, pipeline=WITHOUT)
    assert found(captured) == ([BOTH, BOTH], [])
    ops = {"loka.norm_quantize_backward": 2, "loka.scaled_gemm": 4}
    assert loka_ops(before, "backward") == loka_ops(captured, "backward") == ops
    made = captured.graphs["backward"].find_nodes(
        op="call_function", target=torch.ops.loka.norm_quantize_backward.default
    )
    assert [node.args[8:11] for node in made] == [(E4M3, True, bias)] * 2
    amaxes = [each.ops("backward")["aten.amax"] for each in (before, captured)]
    assert amaxes == [6, 2]  # a gradient's rows and columns, and a weight's columns


def test_the_operands_lie_as_the_products_read_them(in_fp8):
    """Along R, contiguous; else the kernel would copy them."""
    model = stack(bias=False)
    captured, *_ = trained(model, torch.randn(B, D), in_fp8(model))
    gemms = captured.graphs["backward"].find_nodes(op="call_function", target=torch.ops.loka.scaled_gemm.default)
    lhs = [node.args[0] for node in gemms if node.args[0].meta["val"].shape[1] == B]
    assert [node.meta["val"].stride() for node in lhs] == [(B, 1)] * 2
    assert not any(node.target is torch.ops.aten.permute.default for node in lhs)
    saved = captured.graphs["forward"].output_node().args[0]
    narrow = [node.meta["val"] for node in saved if node is not None and node.meta["val"].dtype == E4M3]
    assert [(each.shape, each.stride()) for each in narrow] == [((B, D), (1, B))] * 2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_the_gradients_are_those_of_the_parts(in_fp8, activation, bias):
    """In float32 to the bit, but that Inductor's gelu rounds otherwise. In bfloat16 a gradient is no longer rounded to
    it before FP8 rounds 16 times as coarsely."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        model = stack(activation=activation, bias=bias, layers=3)
        plan, x = in_fp8(model, dtype=dtype), torch.randn(B, D)
        captured, fused, exact, _ = trained(model, x, plan, dtype)
        _, apart, *_ = trained(model, x, plan, dtype, pipeline=WITHOUT)
        assert found(captured)[0] == [BOTH] * 3
        if dtype == torch.float32:
            likeness = [torch.equal(a, b) or sqnr_db(a, b) for a, b in zip(fused, apart, strict=True)]
            assert all(each is True or (each > 50 and activation is nn.GELU) for each in likeness), likeness
            continue
        lost = [sqnr_db(b, e) - sqnr_db(a, e) for a, b, e in zip(fused, apart, exact, strict=True)]
        smooth = activation is nn.GELU  # a ReLU's slope jumps where FP8 rounds its argument across 0
        assert sum(lost) / len(lost) < (0.5 if smooth else 2), lost  # over ten draws 0.1 and -0.2 dB


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.Identity])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_norms_result_is_quantized_where_it_is_made(in_fp8, norm, activation):
    """But a ReLU's alone: its gradient keeps the result wide, so the backward quantizes that by columns."""
    model = stack(lambda n: norm(n) if norm is not nn.Identity else norm(), activation)
    captured, *_ = trained(model, torch.randn(B, D), in_fp8(model, provider="aten"))
    wide = (norm, activation) == (nn.Identity, nn.ReLU)
    assert found(captured, "forward") == ([IN_ONE] + [WITH_NORM] * (not wide), [])
    assert loka_ops(captured, "forward").get("loka.norm_quantize_both", 0) == (not wide)


def test_a_product_leaves_the_norm_to_it(in_fp8):
    """The product is written for the backward in any case; with the norm in its epilogue the result would be too."""
    captured, *_ = trained(model := stack(), torch.randn(B, D), in_fp8(model))
    did = [each.did for each in captured.results["fuse", "forward"].rewrites]
    assert did == ["with bias in its epilogue", "with bias, layer, relu in its epilogue, the product written too"]
    assert found(captured, "forward")[0] == [IN_ONE, WITH_NORM]
    assert loka_ops(captured, "forward") == {
        "loka.triton_quantize": 1,
        "loka.gemm_norm": 2,
        "loka.norm_quantize_both": 1,
    }


@pytest.mark.parametrize("dynamic", [False, None])
def test_a_prime_batch_of_sequences(in_fp8, dynamic):
    """The second batch is a symbol; 16 times that is known to be a multiple of 16."""
    model, x = stack(nn.RMSNorm), torch.randn(257, 16, D)
    plan = in_fp8(model, x=torch.randn(3, 16, D))
    captured, *_ = trained(model, x, plan, dynamic=dynamic)
    assert found(captured) == ([BOTH, BOTH], []) and captured.compilations == 1
    assert found(captured, "forward")[0] == [IN_ONE, WITH_NORM]
    assert ("Sym(" in captured.code("backward")) == (dynamic is None)


def test_rows_that_are_padded_stay(in_fp8):
    model = stack(bias=False)
    x = torch.randn(257, D)
    plan = in_fp8(model, x=x)
    captured, fused, *_ = trained(model, x, plan)
    did, reasons = found(captured)
    assert not did and len(reasons) == 2 and all("padded to (272, 64)" in each for each in reasons)
    assert found(captured, "forward")[0] == []
    _, apart, *_ = trained(model, x, plan, pipeline=WITHOUT)
    assert all(map(torch.equal, fused, apart))


def test_another_reader_keeps_it_wide(in_fp8):
    model = stack(bias=False)
    captured, *_ = trained(model, torch.randn(B, D), in_fp8(model, roles=("output", "grad_input")))
    did, reasons = found(captured)
    assert not did and all(each.startswith("its result is also read by mm") for each in reasons) and len(reasons) == 2


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("fp8_tensorwise", "it is quantized to torch.float8_e5m2 by tensor"),
        ("fp8_blockwise", "it is quantized to torch.float8_e4m3fn by block"),
    ],
)
def test_other_scalings_stay(in_fp8, recipe, reason):
    model = stack(bias=False)
    captured, *_ = trained(model, torch.randn(B, D), in_fp8(model, recipe))
    did, reasons = found(captured)
    assert not did and len(reasons) == 2 and all(reason in each for each in reasons)


def test_twice_is_once(in_fp8):
    model = stack()
    captured, *_ = trained(model, torch.randn(B, D), in_fp8(model), pipeline=UNLOWERED)
    for name in ("forward", "backward"):
        graph = captured.graphs[name]
        before = graph.python_code("self").src
        again = FuseCast()(graph, Context(NOTHING, "cuda"))
        assert not again.rewrites and graph.python_code("self").src == before


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_the_pattern_nothing_is_touched(in_fp8, device):
    model = stack(bias=False)
    plan = in_fp8(model) if device == "cpu" else NOTHING
    with_it, without = (
        trained(model, torch.randn(B, D), plan, device=device, pipeline=each)[0] for each in (PIPELINE, WITHOUT)
    )
    for name in ("forward", "backward"):
        nothing = skipped(with_it, "fuse_cast", name) if device == "cpu" else found(with_it, name) == ([], [])
        assert nothing and with_it.code(name) == without.code(name)
