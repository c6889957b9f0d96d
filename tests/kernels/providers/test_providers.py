"""Providers: who can run what, and why not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.kernels.providers import PROVIDERS, padded, reasons_against, runner
from loka_compile.kernels.providers.aten import INT8_MAX_K, UINT8_MAX_K
from loka_compile.kernels.providers.base import missing
from loka_compile.spec.processor import processor
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.target import TARGETS

CPU, H100 = TARGETS["cpu"], TARGETS["h100"]
SYMBOL = sympy.Symbol("s0", integer=True, positive=True)


def site(M=64, N=48, K=32, batch=1, op="mm"):
    sizes = [value if isinstance(value, sympy.Basic) else sympy.Integer(value) for value in (batch, M, N, K)]
    return Site("fc#0:output", op, "output", *sizes, torch.float32)


def why(recipe, target, **sizes):
    return "; ".join(reasons_against("aten", site(**sizes), RECIPES[recipe], target))


def padding(provider, recipe, target, **sizes):
    where = site(**sizes)
    return where.padding(padded(provider, where, RECIPES[recipe], target)).removeprefix("padded: ")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not RECIPES[name].unsigned])
@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
@pytest.mark.parametrize("sizes", [{}, {"M": 1, "N": 1, "K": 1}, {"K": INT8_MAX_K + 1}, {"batch": SYMBOL, "op": "bmm"}])
def test_emulation_runs_everything(recipe, target, sizes):
    assert reasons_against("emulated", site(**sizes), RECIPES[recipe], target) == []


@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_plain_casts_run_at_any_size(recipe):
    for sizes in ({"M": 1, "N": 1, "K": 1}, {"batch": 4, "op": "bmm", "K": 7}):
        assert why(recipe, H100, **sizes) == ""


@pytest.mark.parametrize("op", ["bmm", "baddbmm"])
@pytest.mark.parametrize("sizes", [{"M": 1}, {"N": 1}, {"K": 1}, {"M": 1, "N": 1}])
def test_a_batch_of_vectors_is_summed_by_inductor_on_a_cpu(op, sizes):
    said = f"with {' = '.join(sizes)} = 1 Inductor multiplies and sums"
    assert why("bf16", CPU, batch=4, op=op, **sizes).startswith(said)
    assert why("bf16", H100, batch=4, op=op, **sizes) == why("bf16", CPU, batch=4, op=op) == ""
    frozen = replace(site(batch=4, op=op, **sizes), static_rhs=True)
    assert reasons_against("aten", frozen, RECIPES["bf16"], CPU) == []


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_tensorwise", "fp8_rowwise"])
def test_alignment_is_the_targets(recipe):
    both = {"K": 1, "N": 24}, "K 1 -> 16, N 24 -> 32"
    for sizes, how in (({}, ""), ({"K": 40}, "K 40 -> 48"), ({"N": 24}, "N 24 -> 32"), both):
        assert why(recipe, H100, **sizes) == "" and padding("aten", recipe, H100, **sizes) == how
        assert padding("aten", recipe, CPU, **sizes) == ""
    assert padding("aten", recipe, H100, M=4097) == ""  # rows need no alignment
    assert padding("aten", "bf16", H100, K=40) == ""


def test_symbolic_sizes():
    assert why("fp8_rowwise", H100, M=SYMBOL) == ""
    assert "K = 16*s0" not in why("fp8_rowwise", H100, K=16 * SYMBOL)
    assert "K = s0" in why("fp8_rowwise", H100, K=SYMBOL)  # cannot be promised
    assert padding("aten", "fp8_rowwise", H100, K=SYMBOL, N=40) == "N 40 -> 48"
    assert "K = s0: only numbers are padded" in why("fp8_rowwise", H100, K=SYMBOL, N=40)
    assert why("fp8_rowwise", CPU, K=SYMBOL) == ""
    assert "more than 16 rows, M = s0" in why("int8_rowwise", H100, M=SYMBOL)
    assert "K = s0 can overflow int32" in why("int8_rowwise", CPU, K=SYMBOL)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.device == "cuda"], ids=str)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_affine_operands_are_never_padded(provider, target):
    """Zeros may be smaller than what a row has."""
    where = replace(site(K=109, N=7), static_rhs=True)
    recipe = RECIPES["uint8_affine"]
    assert reasons_against(provider, where, recipe, target) or padded(provider, where, recipe, target) == where


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_tensorwise", "fp8_rowwise"])
@pytest.mark.parametrize(("batch", "op"), [(4, "bmm"), (1, "bmm"), (SYMBOL, "baddbmm")])
def test_batches_of_matrices_have_no_8_bit_kernel(recipe, batch, op):
    assert "takes two matrices, this is a batch of" in why(recipe, CPU, batch=batch, op=op)


def test_blocks_are_not_there_yet():
    assert "block scales" in why("fp8_blockwise", H100)


def test_int8_sums_must_fit():
    assert INT8_MAX_K * 127**2 <= 2**31 - 1 < (INT8_MAX_K + 1) * 127**2
    assert why("int8_rowwise", CPU, K=INT8_MAX_K) == ""
    assert "overflow int32" in why("int8_rowwise", CPU, K=INT8_MAX_K + 1)
    assert why("fp8_rowwise", CPU, K=INT8_MAX_K + 1) == ""


def test_int8_on_cuda_wants_more_than_16_rows():
    assert "more than 16 rows, M = 16" in why("int8_rowwise", H100, M=16)
    assert why("int8_rowwise", H100, M=17) == "" == why("int8_rowwise", CPU, M=1)


def test_scaled_mm_of_a_contraction_of_one():
    assert "K = 1" in why("fp8_rowwise", CPU, K=1)
    assert why("int8_rowwise", CPU, K=1) == ""


def test_an_unknown_provider_says_who_is_known():
    (reason,) = reasons_against("cutlass", site(), RECIPES["bf16"], CPU)
    assert "unknown provider 'cutlass'" in reason and all(name in reason for name in PROVIDERS)


def test_emulation_stands_in_for_other_hardware_only():
    h100 = TARGETS["h100"]
    assert runner("aten", site(), RECIPES["int8_rowwise"], CPU, "cpu") == "aten"
    assert runner("aten", site(), RECIPES["fp8_rowwise"], h100, "cpu") == "aten"
    assert runner("aten", site(K=1), RECIPES["fp8_rowwise"], h100, "cpu") == "emulated"
    assert runner("deep_gemm", site(), RECIPES["fp8_blockwise"], h100, "cpu") == "emulated"
    assert runner("aten", site(K=1), RECIPES["fp8_rowwise"], CPU, "cpu") == ""
    assert runner("aten", site(K=40), RECIPES["fp8_rowwise"], h100, "cuda") == "aten"
    assert runner("aten", site(K=SYMBOL), RECIPES["fp8_rowwise"], h100, "cuda") == ""
    assert list(PROVIDERS)[-1] == "emulated"


# ---------------------------------------------------------------- other libraries


def against(provider, recipe, target=CPU, **sizes):
    relu = Operand("x", "relu.default", nonnegative=True)
    where = replace(site(**sizes), lhs=relu, static_rhs=True)
    return "; ".join(reasons_against(provider, where, RECIPES[recipe], target))


def test_onednn_takes_what_does_not_saturate_and_frozen_weights():
    saturates = "without VNNI oneDNN adds pairs of products in 16 bits, which saturate: weights of 7 bits do not"
    assert against("onednn", "uint8_rowwise") == (saturates if processor().onednn_saturates else "")
    assert against("onednn", "int8_rowwise_w7") == "" == against("onednn", "int8_rowwise")  # no value is negative
    assert "unsigned bytes" in "; ".join(reasons_against("onednn", site(), RECIPES["int8_rowwise"], CPU))
    assert "onednn has no kernel for uint8_affine" in against("onednn", "uint8_affine")
    assert "runs on CPUs" in against("onednn", "uint8_rowwise", H100)
    assert "a batch" in against("onednn", "uint8_rowwise", batch=4, op="bmm")
    assert "can overflow int32" in against("onednn", "uint8_rowwise", K=UINT8_MAX_K + 1)
    nonnegative = replace(site(), lhs=Operand("x", "relu.default", nonnegative=True))
    assert "not frozen" in "; ".join(reasons_against("onednn", nonnegative, RECIPES["uint8_rowwise"], CPU))


def test_weights_of_7_bits_are_of_use_where_8_would_saturate():
    kept, signed = replace(site(), static_rhs=True), RECIPES["int8_rowwise_w7"]
    assert reasons_against("onednn", kept, signed, CPU) == []
    assert bool(PROVIDERS["onednn"].no_use(kept, signed, CPU)) is not processor().onednn_saturates
    assert PROVIDERS["onednn"].no_use(kept, RECIPES["uint8_rowwise"], CPU) == ""


@pytest.mark.parametrize("provider", ["aten", "onednn"])
def test_operands_that_are_quantized_by_rows_only_are_not_flipped(provider):
    for recipe in ("uint8_affine", "int8_rowwise_w7"):
        where = replace(site(), lhs=Operand("x", flipped=True), static_rhs=True)
        if recipe in PROVIDERS[provider].speaks:
            assert "along its rows only" in "; ".join(reasons_against(provider, where, RECIPES[recipe], CPU))


NEWCOMER = """
import torch
from loka_compile.kernels.gemm.product import reference
from loka_compile.kernels.providers.base import Behind, Provider

class Newcomer(Provider):
    name, speaks, rank, native = "newcomer", ("int8_rowwise",), 5, True

    def reasons_against(self, site, recipe, target):
        return [] if target.device == "cpu" else ["it runs on CPUs"]

    def product(self, a, a_scale, b, b_scale, out_dtype):
        return reference(a, a_scale, b, b_scale, out_dtype)

    def timed(self, a, b, scales, out, dtype):
        return lambda: None

PROVIDER = Newcomer()
"""


def test_a_new_provider_is_one_file(tmp_path):
    """It is found, priced, chosen, run and explained, and nothing else names it."""
    (tmp_path / "newcomer.py").write_text(NEWCOMER)
    script = f"""
import torch, loka_compile.kernels
folder = loka_compile.kernels.__path__[0] + "/providers"
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def with_newcomer(name, path=None, target=None):
    spec = find(name, path, target)
    if name == "loka_compile.kernels.providers":
        spec.submodule_search_locations.append({str(tmp_path)!r})
    return spec
PathFinder.find_spec = with_newcomer
import loka_compile as loka
from loka_compile.kernels.providers import PROVIDERS
torch.manual_seed(0)
model, x = torch.nn.Linear(512, 512), torch.randn(512, 512)
with torch.no_grad():
    with loka.probe(model) as probe:
        model(x)
    options = {{"profile": probe.profile, "recipes": ("int8_rowwise",), "race": False}}
    compiled = torch.compile(model, backend="loka", options=options)
    error = (compiled(x) - model(x)).norm() / model(x).norm()
row, = loka.explain(compiled).rows
print(list(PROVIDERS)[:2], row.recipe, row.provider, row.runs_as, bool(error < 0.03))
"""
    command, own = [sys.executable, "-W", "ignore", "-c", script], {"LOKA_CACHE_DIR": str(tmp_path / "times")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['aten', 'newcomer'] int8_rowwise newcomer loka.frozen_gemm True"


def test_torchao_goes_as_far_as_its_kernels():
    pytest.importorskip("torchao")
    for recipe in ("int8_rowwise", "fp8_rowwise", "fp8_tensorwise"):
        refused = recipe == "int8_rowwise" and processor().int_mm_saturates
        assert ("without VNNI" in against("torchao", recipe)) is refused
        assert refused or against("torchao", recipe) == ""
    assert against("torchao", "bf16") == "torchao has no kernel for bf16"
    assert "does not pad M, K = 1" in against("torchao", "int8_rowwise", M=1, K=1)


def test_a_library_that_is_not_there_says_how_to_get_it():
    assert missing("no_such_library_of_ours", "extra") == [
        "no_such_library_of_ours is not installed: pip install loka-compile[extra]"
    ]
    assert missing("torch") == []


def test_gpu_libraries_name_what_they_want():
    assert "run on CUDA" in against("fbgemm", "fp8_rowwise")
    assert against("fbgemm", "bf16", H100) == "fbgemm has no kernel for bf16"
    assert padding("fbgemm", "fp8_rowwise", H100, K=40) == "K 40 -> 48"
    assert "runs on Hopper, b200 is none" in against("deep_gemm", "fp8_blockwise", TARGETS["b200"])
    assert padding("deep_gemm", "fp8_blockwise", H100, K=256, N=128) == ""
    assert padding("deep_gemm", "fp8_blockwise", H100) == "K 32 -> 128, N 48 -> 128"
    assert against("deep_gemm", "fp8_blockwise", H100) in ("", "deep_gemm is not installed")


# ---------------------------------------------------------------- loka's own kernels


@pytest.mark.parametrize("recipe", ["fp8_tensorwise", "fp8_rowwise", "fp8_blockwise"])
def test_triton_takes_what_can_be_aligned(recipe):
    for sizes in ({}, {"M": 4097}, {"M": SYMBOL}, {"batch": SYMBOL, "op": "bmm"}):
        assert against("triton", recipe, H100, **sizes) == ""
    assert against("triton", recipe, H100, K=40, N=24) == ""
    assert padding("triton", recipe, H100, K=40, N=24) == "K 40 -> 48, N 24 -> 32"
    assert "K = s0" in against("triton", recipe, H100, K=SYMBOL)
    assert against("triton", recipe, H100, K=16 * SYMBOL) == ""
    assert "run on GPUs" in against("triton", recipe)


def test_triton_knows_the_formats_of_a_chip():
    assert "mi300x has no tensor cores for torch.float8_e4m3fn" in against("triton", "fp8_rowwise", TARGETS["mi300x"])
    assert against("triton", "fp8_rowwise", TARGETS["mi350x"]) == ""
    assert against("triton", "int8_rowwise", H100) == "triton has no kernel for int8_rowwise"


def test_a_plan_for_triton_is_emulated_on_a_cpu():
    assert runner("triton", site(), RECIPES["fp8_rowwise"], H100, "cpu") == "emulated"
    assert runner("triton", site(), RECIPES["fp8_rowwise"], H100, "cuda") in ("triton", "")
