"""A probed model computes what it computed, is left as it was, and every GEMM that ran is in the profile."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.probe import session
from loka_compile.probe.session import ProbeError
from loka_compile.spec.recipes import RECIPES
from tests.probe.small import Broken, Mlp, Tied

pytestmark = pytest.mark.usefixtures("seeded")


def step(model, *batches):
    """Outputs and gradients of one accumulated step."""
    model.zero_grad()
    outs = []
    for batch in batches:
        torch.manual_seed(1)
        out = model(batch)
        out.square().sum().backward()
        outs.append(out.detach())
    return [*outs, *(p.grad for p in model.parameters())]


def probe_step(model, *batches, **options):
    with loka.probe(model, **options) as probe:
        found = step(model, *batches)
    return found, probe


LINEARS = {
    "first#0:output",
    "first#0:grad_weight",
    "second#0:output",
    "second#0:grad_input",
    "second#0:grad_weight",
}


def names(profile):
    return {key.removeprefix("self.") for key in profile.sites}


def test_training_step():
    model, batches = Mlp(dropout=0.5), (torch.randn(10, 12), torch.randn(7, 12), torch.randn(23, 12))
    expected = step(model, *batches)
    found, probe = probe_step(model, *batches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert names(probe.profile) == LINEARS
    assert "_compiled_call_impl" not in vars(model)

    first, weight = (probe.profile.sites[k] for k in ("first#0:output", "second#0:grad_weight"))
    assert (first.calls, first.lhs.rows, first.observed) == (3, 40, (1, 23, 16, 12))
    assert first.site.M.free_symbols  # of the second graph, for any batch size
    assert weight.site.gradient
    assert set(first.scores) == set(first.drawn) == set(RECIPES)
    x = torch.cat(batches).double()
    assert first.lhs.mean == pytest.approx(x.mean().item())
    assert first.lhs.std == pytest.approx(x.std(correction=0).item())
    assert first.lhs.amax == x.abs().max()
    assert first.rhs.amax == model.first.weight.abs().max()
    for known in probe.profile.sites.values():
        for scores in (known.scores, {name: each.cautious for name, each in known.drawn.items()}):
            assert 0 < scores["fp16"].mere < scores["bf16"].mere < scores["fp8_tensorwise"].mere < 1
            assert scores["fp8_rowwise"].sqnr_db > 20


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forward_only(mode):
    model, x = Mlp().eval(), torch.randn(9, 12)
    with mode(), loka.probe(model, recipes=["int8_rowwise"]) as probe:
        torch.testing.assert_close(model(x), model.forward(x))
    assert names(probe.profile) == {"first#0:output", "second#0:output"}
    assert list(probe.profile.sites["first#0:output"].scores) == ["int8_rowwise"]
    assert probe.profile.sites["first#0:output"].site.static_rhs


def test_the_same_probe_twice_is_the_same_profile():
    x = torch.randn(300, 12)
    one, two = (probe_step(copy.deepcopy(model), x)[1].profile for model in [Mlp()] * 2)
    assert one.to_bytes() == two.to_bytes()


def test_save(tmp_path):
    _, probe = probe_step(Mlp(), torch.randn(9, 12))
    probe.save(tmp_path / "x.profile")
    assert loka.load_profile(tmp_path / "x.profile") == probe.profile
    assert probe.profile is probe.profile
    assert "first#0:output" in probe.profile.summary()


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), nn.Linear(6, 3)])
def test_modules_of_torch_as_roots(model):
    x = torch.randn(4, 6)
    expected = step(model, x)
    found, probe = probe_step(model, x)
    torch.testing.assert_close(found, expected)
    assert len(probe.profile.sites) == (5 if isinstance(model, nn.Sequential) else 2)


def test_a_module_called_twice_and_tied_weights():
    model, x = Tied(), torch.randn(4, 8)
    expected = step(model, x)
    found, probe = probe_step(model, x)
    torch.testing.assert_close(found, expected)
    assert {"a#0:output", "a#1:output", "b#0:output"} <= names(probe.profile)
    assert len(probe.profile.sites) == 8


def test_graph_break():
    model, x = Broken(), torch.randn(4, 6)
    expected = step(model, x)
    found, probe = probe_step(model, x)
    torch.testing.assert_close(found, expected)
    outputs = [known for key, known in probe.profile.sites.items() if key.startswith("layer#0:output")]
    assert len(outputs) == 2
    assert len({known.site.source for known in outputs}) == 2
    for known in outputs:
        assert probe.profile.find(known.site) is known


def test_faulty_values_are_counted():
    model, x = Mlp(), torch.randn(10, 12)
    x[0, 0], x[1, 1], x[3:6], x[9, 0] = math.nan, math.inf, 0, 1e5
    with torch.no_grad(), loka.probe(model) as probe:
        torch.testing.assert_close(model(x), model.forward(x), equal_nan=True)
    known = probe.profile.sites["first#0:output"]
    assert (known.lhs.non_finite, known.lhs.zero_rows, known.lhs.fp16_overflows) == (2, 3, 1)
    assert known.scores["fp16"].mere == math.inf  # it overflows
    assert known.scores["fp8_rowwise"].mere < 0.3  # the faulty rows are faulty in the model itself


def test_bmm_and_attention():
    class Attend(nn.Module):
        def forward(self, q, k):
            return (q @ k.transpose(1, 2)).softmax(-1) @ k

    q, k = torch.randn(3, 20, 8, requires_grad=True), torch.randn(3, 20, 8)
    model = Attend()
    with loka.probe(model, rows=16) as probe:
        for length in (20, 12):
            model(q[:, :length], k[:, :length]).sum().backward()
    assert {known.site.op for known in probe.profile.sites.values()} == {"bmm"}
    assert probe.profile.sites["self#0:output"].observed == (3, 20, 20, 8)


def test_autocast_and_half_precision():
    model, x = Mlp(), torch.randn(16, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), loka.probe(model) as probe:
        model(x)
    known = probe.profile.sites["first#0:output"]
    assert known.site.dtype == torch.bfloat16
    assert known.scores["bf16"].sqnr_db > 45  # only the output is rounded: operands are bfloat16 already


def test_empty_batch():
    model = Mlp()
    with torch.no_grad(), loka.probe(model) as probe:
        assert model(torch.empty(0, 12)).shape == (0, 8)
        model(torch.randn(5, 12))
    assert probe.profile.sites["first#0:output"].lhs.rows == 5


def test_more_calls_than_are_scored_still_count():
    model = Mlp()
    with torch.no_grad(), loka.probe(model, score_calls=1, recipes=["fp16"]) as probe:
        model(torch.ones(4, 12))
        model(torch.full((4, 12), 1e6))  # would overflow
    known = probe.profile.sites["first#0:output"]
    assert (known.calls, known.lhs.fp16_overflows) == (2, 48)
    assert known.scores["fp16"].mere < 1


def test_a_model_is_restored_after_an_error():
    model = Mlp()
    with pytest.raises(ZeroDivisionError), loka.probe(model):
        raise ZeroDivisionError
    assert "_compiled_call_impl" not in vars(model)
    with loka.probe(model):  # and may be probed again
        pass


def test_misuse_is_an_error():
    model = Mlp()
    with pytest.raises(TypeError, match="got function"):
        loka.probe(lambda x: x)
    with pytest.raises(ValueError, match="did you mean 'fp8_rowwise'"):
        loka.probe(model, recipes=["fp8_rowise"])
    with pytest.raises(ValueError, match="the string 'fp16'"):
        loka.probe(model, recipes="fp16")
    with pytest.raises(ValueError, match="rows must be at least 1"):
        loka.probe(model, rows=0)
    with loka.probe(model) as probe:
        with pytest.raises(ProbeError, match="probed already"):
            loka.probe(model).__enter__()
        with pytest.raises(ProbeError, match="entered before"):
            probe.__enter__()
        model.forward(torch.ones(2, 12))
    with pytest.raises(ProbeError, match="no batch went through"):
        _ = probe.profile
    for compiled in (torch.compile(Mlp()), Mlp()):
        compiled.compile()
        with pytest.raises(ProbeError, match="compiled already"):
            loka.probe(compiled).__enter__()


def test_a_model_without_gemms_says_so():
    model = nn.ReLU()
    with loka.probe(model) as probe:
        model(torch.ones(3))
    with pytest.raises(ProbeError, match="no floating-point GEMM"):
        _ = probe.profile


def test_calls_that_dynamo_gave_up_on_are_reported(monkeypatch):
    monkeypatch.setattr(session, "RECOMPILE_LIMIT", 1)
    measured = 1 if "isolate_recompiles" in APART else 2  # before torch 2.13 the user's own limit comes on top
    model, missed = Mlp(), f"{3 - measured} of 3 calls"
    with (
        torch.compiler.config.patch(recompile_limit=1),
        pytest.warns(UserWarning, match=missed),
        torch.no_grad(),
        loka.probe(model) as probe,
    ):
        for dims in (1, 2, 3):
            model(torch.ones(*[2] * dims, 12))
    assert probe.profile.sites["first#0:output"].calls == measured


def test_more_graphs_than_dynamo_s_usual_limit():
    model = Mlp()
    with warnings.catch_warnings(), torch.no_grad(), loka.probe(model, recipes=["fp16"]) as probe:
        warnings.simplefilter("error", UserWarning)
        for dims in range(1, 10):
            model(torch.ones(*[2] * dims, 12))
    assert probe.profile.sites["second#0:output"].lhs.rows == sum(2**dims for dims in range(1, 10))


def test_equal_products_are_all_known_though_one_runs(fresh_dynamo, op_by_op):
    """FiBiNet's bilinear interaction: every pair of fields multiplies the first one by the same matrix."""

    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, fields):
            pairs = itertools.combinations(fields.unbind(1), 2)
            return torch.cat([a @ self.weight * b for a, b in pairs], dim=1)

    model, x = Bilinear(), torch.randn(64, 4, 32)
    with loka.probe(model) as probe:
        model(x).square().sum().backward()
    sites = probe.profile.sites
    forward = [f"self#{number}:output" for number in range(6)]
    assert [key for key in sites if key.endswith("output")] and set(forward) <= sites.keys()
    assert sites["self#1:output"].scores == sites["self#0:output"].scores != sites["self#3:output"].scores
    assert sites["self#1:output"].site.key == "self#1:output"

    options = {"target": "h100", "min_speedup": 0, "recipes": ("int8_rowwise",)}
    for given in ({"profile": probe.profile}, {}):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="loka", options={**options, **given})
        for _ in range(4):
            compiled(x).square().sum().backward()
        chosen = {key: str(decision.chosen) for key, decision in loka.plan(compiled).decisions.items()}
        assert [chosen.get(key) for key in forward] == ["int8_rowwise/aten"] * 6
        assert not [row.key for row in loka.explain(compiled).rows if "no decision" in row.reason]
