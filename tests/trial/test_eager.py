"""Never slower than eager: the graph as it was written runs op by op where that is clearly faster, and `explain` says
so."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, fx, nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.dispatch import kept_times
from loka_compile.graph.reader import read
from loka_compile.spec.decision import Candidate, Decision, Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.trial import eager
from loka_compile.trial.eager import eager_or_compiled
from loka_compile.trial.laps import Times
from loka_compile.trial.race import Raced
from tests.trial.racing import site

INT8 = Candidate("int8_rowwise", "aten")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    for each in (kept_times._file, kept_times.times):
        each.cache_clear()
    yield
    for each in (kept_times._file, kept_times.times):
        each.cache_clear()


class Taking:
    """Compiled code that takes so long, and how often it ran."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.seconds:
            time.sleep(self.seconds)
        return (args[0] * 2,)


def plan() -> Plan:
    decision = Decision(site("a"), INT8, "fast", {str(INT8): Score()})
    return Plan("cpu", {decision.site.key: decision})


def graph_of(function, *inputs: Tensor) -> fx.GraphModule:
    """As Dynamo hands it over."""
    seen: list[fx.GraphModule] = []

    def keep(gm, _):
        seen.append(gm)
        return gm.forward

    torch.compile(function, backend=keep, **APART)(*inputs)
    return seen[0]


def race(call: Taking, function=torch.sin, options: Options | None = None, device: str = "cpu") -> Raced:
    x = torch.randn(4)
    gm = graph_of(lambda x: function(x), x)
    raced = Raced(plan(), (call, ["an artifact"]))
    return eager_or_compiled(raced, gm, read(gm.graph), [x], options or Options(), device)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_eager_that_is_faster_runs_and_says_by_how_much() -> None:
    ran = race(Taking(0.01))
    (out,) = ran.built[0](x := torch.randn(4))
    assert torch.equal(out, x.sin()) and not ran.built[1]
    assert not ran.plan.lowered and "as in eager" in ran.plan.raced
    assert "as in eager" in ran.plan.decisions["a#0:output"].reason


def test_code_that_is_faster_stays_and_that_costs_a_few_calls() -> None:
    def slowly(x: Tensor) -> Tensor:
        for _ in range(5000):
            x = x.cos()
        return x

    call = Taking(0.0012)  # longer than a turn, in which shorter ones are called again
    ran = race(call, slowly)
    assert ran.built[0] is call and ran.plan.lowered and call.calls <= 4


def test_a_verdict_is_kept() -> None:
    first, second = Taking(0.01), Taking(0.0)
    assert race(first).built[0] is not first
    assert race(second).built[0] is not second and not second.calls


@pytest.mark.parametrize(
    "function, options, device",
    [
        (lambda x: torch.nn.functional.dropout(x, 0.5), Options(), "cpu"),
        (torch.sin, Options(race=False), "cpu"),
        (torch.sin, Options(min_speedup=0), "cpu"),
        (torch.sin, Options(), "cuda"),
    ],
    ids=["draws", "no race", "speed is no matter", "a GPU"],
)
def test_what_does_not_run_in_eager(function, options, device) -> None:
    call = Taking(0.01)
    ran = race(call, function, options, device)
    assert ran.built[0] is call and not call.calls
    assert bool(ran.eager) == (function is not torch.sin)  # of what no option forbids the reason is told


def test_a_small_model_runs_in_eager_and_explain_says_so(monkeypatch) -> None:
    """Around compiled code stands more than one small product takes: by how much is told here, not timed."""
    monkeypatch.setattr(eager, "fastest_us", lambda calls, *_: Times([[8.0, 4.0], [8.0, 4.0]]))
    model, x = nn.Linear(4, 4), torch.randn(1, 4)
    compiled = torch.compile(model, backend="loka", options={"measure_calls": 0})
    with torch.no_grad():
        out = compiled(x)
    assert "as in eager: 2.00x" in str(loka.explain(compiled)) and torch.equal(out, model(x))


def test_training_in_eager_gives_its_gradients() -> None:
    model, x = nn.Linear(4, 4), torch.randn(1, 4, requires_grad=True)
    compiled = torch.compile(model, backend="loka", options={"measure_calls": 0})
    grads = [torch.autograd.grad(call(x).square().sum(), [x, *model.parameters()]) for call in (model, compiled)]
    for its, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, its)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_code_for_any_batch_stays_compiled() -> None:
    """A small batch says nothing of the large ones that the same code serves."""
    compiled = torch.compile(nn.Linear(4, 4), backend="loka", options={"measure_calls": 0}, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 4))
        compiled(torch.randn(3, 4))
    said = str(loka.explain(compiled))
    assert "op by op, as in eager" not in said
    assert "not raced against eager: it is for any batch" in said
