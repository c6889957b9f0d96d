"""What loka's passes find in a Lattice Network, on graphs of a CUDA device that are run op by op."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from examples.lattice.networks.samples import Inputs
from examples.lattice.networks.serve import Ranked
from examples.lattice.networks.untie import for_domain
from loka_compile.kernels.providers import triton
from loka_compile.passes.raising.raise_fm import RaiseFm
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.raising.raise_pffn import RaisePffn
from loka_compile.passes.simplify import _rates as rates
from loka_compile.passes.simplify.hoist import Hoist
from loka_compile.spec.plan import Plan
from tests.examples.lattice.networks.small import SIZE, double, inputs, network
from tests.helpers import compile_op_by_op, sqnr_db
from tests.passes.exact import FREE, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
PASSES = (RaiseFm(), RaiseGdpa(), RaisePffn(), RaiseNorms())
NOTHING = Plan("h100", {}, origin="nothing is planned")
OURS = replace(SIZE, width=16, hidden=(16,), ffn=16)  # sizes that kernels take


def halves(of):
    return Inputs(*(x.bfloat16() if x.is_floating_point() and x.dim() < 3 else x for x in of))


def served(plan=NOTHING):
    """(what passes did to the network as it serves one domain, in bf16; dB against float64)."""
    model, of = for_domain(network(OURS), 0).eval().bfloat16(), halves(inputs(33))
    exact = copy.deepcopy(model).double()
    captured = compile_op_by_op(model, plan, device="cuda", on_dynamo=PASSES)
    with torch.no_grad():
        return captured, sqnr_db(captured(*of), exact(*double(of)))


def test_factorization_machines_and_generated_networks_are_one_op_each():
    captured, noise = served()
    ops = captured.ops("inference")
    assert ops["loka.fm"] == ops["loka.pffn"] == SIZE.layers and ops["loka.gdpa"] == 0
    said = [rewrite.did for rewrite in captured.results["raise_fm", "dynamo"].rewrites]
    assert said == ["one op: factorization machine, rms norm"] * SIZE.layers
    assert noise > 25, noise


def test_swish_rms_norm_rides_in_the_products_epilogue(plan_for, monkeypatch):
    monkeypatch.setattr(triton, "_fp8_here", lambda: True)
    model, of = for_domain(network(OURS), 0).eval().bfloat16(), halves(inputs(33))
    with torch.no_grad():
        plan = plan_for("bf16", model, *of, provider="triton", target="h100")
    captured, noise = served(plan)
    fused = [each for each in captured.results["fuse", "inference"].rewrites if "rms, silu" in each.did]
    names = {each.site.partition("#")[0] for each in fused}
    for depth in range(SIZE.layers):
        assert f"fusions.{depth}.copies.0.fmb.0" in names and f"transformers.{depth}.ffn.copies.0.0" in names
    assert noise > 20, noise


def test_a_history_is_worked_on_once_for_all_candidates(monkeypatch):
    monkeypatch.setattr(rates, "CPU", rates.Rates(**FREE))
    of = inputs(5)
    once = of._replace(**{name: getattr(of, name)[:1] for name in ("events", "seconds", "mask", "domain")})
    model = Ranked(for_domain(network(), 0)).eval()
    with torch.no_grad():
        seen = rewritten(Hoist(), model, *once)
        torch.testing.assert_close(seen.out, model(*once))
    names = {site.removeprefix("model.") for site, _ in seen.did}
    for source in range(2):
        assert f"sequences.sources.{source}.mlp.0" in names
    for part in ("q", "kv"):
        assert f"transformers.0.itself.{part}" in names
    assert not any(name.startswith("transformers.1") for name in names)  # which has seen the candidate
