"""thin: which products are written out on a GPU's graph, run op by op here against float64, and which are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from loka_compile.passes.post_grad.thin import TYPES
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B = 257  # a prime batch
NOTHING = Plan("h100", {})


def products(captured, graph):
    ops = captured.ops(graph)
    return sum(ops[f"aten.{name}"] for name in ("mm", "addmm", "bmm", "baddbmm"))


def did(captured, graph):
    return [(each.site, each.did) for each in captured.results["thin", graph].rewrites]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(k=st.integers(2, 700), scale=st.sampled_from([1e-3, 1.0, 1e3]), dtype=st.sampled_from(TYPES[::2]))
def test_a_head_is_a_sum_in_float32(k, scale, dtype):
    head, x = nn.Linear(k, 1, dtype=dtype), (scale * torch.randn(11, k)).to(dtype)
    captured = compile_op_by_op(lambda x: head(x).sigmoid(), NOTHING, device="cuda")
    with torch.no_grad():
        out = captured(x)
        exact = (x.double() @ head.weight.double().mT + head.bias.double()).sigmoid()
    assert [what for _, what in did(captured, "inference")] == ["written out as a sum"]
    assert not products(captured, "inference")
    torch.testing.assert_close(out.double(), exact, atol=2e-2 if dtype == torch.bfloat16 else 1e-4, rtol=0)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_step_of_training(dynamic):
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(B, 32)
    captured = compile_op_by_op(model, NOTHING, device="cuda", dynamic=dynamic)
    captured(x).sum().backward()
    own = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(own, [p.grad for p in model.parameters()], rtol=1e-4, atol=1e-4)
    assert [what for _, what in did(captured, "forward")] == ["written out as a sum"]
    assert [what for _, what in did(captured, "backward")] == ["written out as an outer product"]
    assert products(captured, "forward") == 1  # the wide layer's
    assert products(captured, "backward") == 2  # grad_weights: the head's is (1, B) @ (B, 16), a sum over the batch


def test_a_batch_and_alpha_and_beta():
    def fn(c, a, b):
        return torch.baddbmm(c, a, b, beta=0.5, alpha=2.0)

    c, a, b = torch.randn(3, 5, 1), torch.randn(3, 5, 7), torch.randn(3, 7, 1)
    captured = compile_op_by_op(fn, NOTHING, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(captured(c, a, b), fn(c, a, b))
    assert len(did(captured, "inference")) == 1 and not products(captured, "inference")


@pytest.mark.parametrize("a, b", [((5, 7), (7, 2)), ((1, 7), (7, 4))])
def test_what_stays(a, b):
    a, b = torch.randn(a), torch.randn(b)
    captured = compile_op_by_op(torch.mm, NOTHING, device="cuda")
    with torch.no_grad():
        captured(a, b)
    assert not did(captured, "inference") and products(captured, "inference") == 1


def test_whole_numbers_stay_and_say_so():
    captured = compile_op_by_op(torch.mm, NOTHING, device="cuda")
    captured(torch.ones(5, 7, dtype=torch.int64), torch.ones(7, 1, dtype=torch.int64))
    (reject,) = captured.results["thin", "inference"].rejects
    assert "torch.int64" in reject.reason


def test_on_a_cpu_nothing_changes():
    captured = compile_op_by_op(torch.mm, NOTHING)
    with torch.no_grad():
        captured(torch.randn(5, 7), torch.randn(7, 1))
    assert not did(captured, "inference") and products(captured, "inference") == 1
