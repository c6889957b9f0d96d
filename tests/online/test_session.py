"""Online: measured first, then planned once; and sessions do not mix. Graphs run op by op here."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import loka_compile as loka
from loka_compile.online.pace import AT_LEAST
from tests.online.sessions import WATCHFUL, compilations, mlp, online_compile, sessions_of

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "op_by_op", "home")]


def test_measured_calls_then_a_plan_and_dynamo_compiles_once():
    model, x = mlp(), torch.randn(64, 32)
    compiled = online_compile(model)
    with torch.no_grad():
        for number in range(1, 4):
            assert torch.equal(compiled(x), model(x)) and compilations() == 1
            if number < 3:
                explained = loka.explain(compiled)
                note, skipped = explained.notes
                assert note == f"graph_0: online: {number} of 3 calls measured, then a plan is made"
                assert "raise_norms" in skipped and "serves cuda" in skipped
                assert [row.outcome for row in explained.rows] == ["kept", "kept"]
        for _ in range(5):
            out = compiled(x)
        assert compilations() == 1
        assert not torch.equal(out, model(x)) and (out - model(x)).norm() < 0.2 * model(x).norm()
    explained = loka.explain(compiled)
    assert explained.origin == "3 calls measured online" and len(loka.plan(compiled).lowered) == 2
    assert "planned after 3 measured calls; of 5 since, 0 measured again" in explained.notes[0]
    assert explained.notes[0] in " ".join(str(explained).split())


def test_training_learns_from_real_gradients():
    model, x = mlp(), torch.randn(64, 32)
    compiled = online_compile(model, measure_calls=2)
    for _ in range(2):
        compiled(x).square().sum().backward()
        model.zero_grad()
    compiled(x).square().sum().backward()
    roles = {decision.site.role for decision in loka.plan(compiled).lowered}
    assert roles == {"output", "grad_input", "grad_weight"} and compilations() == 1
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).norm() < 0.3 * gradient.norm()


def test_no_measuring_first_means_a_look_at_the_first_batch():
    compiled = online_compile(mlp(), measure_calls=0)
    with torch.no_grad():
        compiled(torch.randn(64, 32))
    assert compilations() == 1
    (skipped,) = loka.explain(compiled).notes
    assert "serves cuda" in skipped
    assert loka.plan(compiled).origin == "a look at the first batch, forward only"


def test_other_batch_sizes_share_the_plan():
    compiled = online_compile(mlp())
    with torch.no_grad():
        for batch in (64, 64, 64, 64, 10, 7, 33):
            out = compiled(torch.randn(batch, 32))
            assert out.shape == (batch, 16)
    assert len({id(session) for session in sessions_of(compiled)}) == 1
    assert compilations() == 2  # for 64 rows, then for any number of them, as under Inductor
    assert len(loka.plan(compiled).lowered) == 2


def test_batch_sizes_may_change_while_measuring():
    model = mlp()
    compiled = online_compile(model, measure_calls=5)
    with torch.no_grad():
        for batch in (64, 10, 7, 33, 12):
            x = torch.randn(batch, 32)
            torch.testing.assert_close(compiled(x), model(x))
        compiled(torch.randn(9, 32))
    assert loka.explain(compiled).origin == "5 calls measured online"


def test_a_graph_without_gemms():
    compiled = online_compile(nn.ReLU())
    x = torch.randn(5)
    for _ in range(6):
        assert torch.equal(compiled(x), x.relu())


def test_methods_of_tensors_called_as_functions():
    """They have a class and no module: b.data = a.data calls torch._C.TensorBase.detach so."""

    def call(x, w):
        return torch._C.TensorBase.detach(x) @ torch.Tensor.relu(w)

    x, w = torch.randn(16, 32), torch.randn(32, 16)
    compiled = online_compile(call)
    for _ in range(5):
        torch.testing.assert_close(compiled(x, w), call(x, w), rtol=0.2, atol=0.5)
    assert len(loka.plan(compiled).lowered) == 1


def test_inputs_that_the_graph_writes_to_are_written_once():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 8)
            self.register_buffer("calls", torch.zeros(()))
            self.average = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x):
            self.calls += 1
            self.average += 1
            x.add_(1)
            return self.fc(x)

    model = Counting()
    compiled = online_compile(model, **WATCHFUL, max_mere=1.0)  # whatever its weights are
    start = torch.arange(4 * 32.0).reshape(4, 32)
    x = start.clone()
    with torch.no_grad():
        for _ in range(3 * AT_LEAST):
            compiled(x)
    (session,) = sessions_of(compiled)
    assert session.pace.measured == 2
    assert model.calls == model.average == 3 * AT_LEAST and torch.equal(x, start + 3 * AT_LEAST)


class Broken(nn.Module):
    """After a graph break it writes into a part of what came before: `views` makes the other part an input as well."""

    def __init__(self, views):
        super().__init__()
        self.a, self.b, self.views = nn.Linear(32, 32), nn.Linear(32, 16), views

    def forward(self, x):
        h = self.a(x)
        left, right = (h[:, :16], h[:, 16:]) if self.views else (h, h.detach().clone()[:, 16:])
        torch._dynamo.graph_break()
        left.mul_(3)
        return self.b(h) + right


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_writes_after_a_graph_break(views, training):
    model, x = Broken(views), torch.randn(16, 32)
    options = {**WATCHFUL, "target": "cpu", "recipes": ("bf16",), "min_speedup": 1e-6}
    compiled = online_compile(model, **options)
    with torch.set_grad_enabled(training):
        for _ in range(AT_LEAST + 10):
            out = compiled(x)
            torch.testing.assert_close(out, model(x), rtol=0.05, atol=0.05)
            if training:
                out.sum().backward()
    raced = [record.plan.raced for record in loka.records(compiled)]
    assert not views or not any(raced[1:])


# ---------------------------------------------------------------- isolation


def test_two_models_of_one_class_do_not_mix():
    first, second = mlp(0), mlp(1)
    one, two = online_compile(first), online_compile(second)
    x = torch.linspace(0, 1, 8 * 32).reshape(8, 32)
    with torch.no_grad():
        for _ in range(5):
            one(x), two(100 * x)
    (a,), (b,) = sessions_of(one), sessions_of(two)
    assert a is not b and a.first_calls == b.first_calls == 3
    amax = [s.watcher.profile().sites["0#0:output"].lhs.amax for s in (a, b)]
    assert amax == [1.0, 100.0]


def test_training_and_serving_one_model_do_not_mix():
    model, x = mlp(), torch.randn(8, 32)
    compiled = online_compile(model)
    for _ in range(4):
        compiled(x).sum().backward()
        with torch.no_grad():
            compiled(100 * x)
    assert len({id(session) for session in sessions_of(compiled)}) == 2
    assert all(session.first_calls == 3 for session in sessions_of(compiled))


def in_threads(work, count=4):
    ready = threading.Barrier(count)

    def start(_):
        ready.wait()
        with torch.no_grad():
            return work()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def test_threads_measure_every_call_once():
    """Compiled beforehand: torch.compile itself refuses calls in one thread while another one compiles."""
    model, x = mlp(), torch.randn(16, 32)
    compiled = online_compile(model, measure_calls=1000)
    with torch.no_grad():
        compiled(x)
    reference = model(x)
    outs = in_threads(lambda: [compiled(x) for _ in range(50)])
    assert all(torch.equal(out, reference) for part in outs for out in part)
    (session,) = sessions_of(compiled)
    assert session.first_calls == 201
    assert session.watcher.profile().sites["0#0:output"].calls == 201


def test_threads_are_served_while_one_measures():
    model, x = mlp(), torch.randn(16, 32)
    compiled = online_compile(model, **WATCHFUL)
    with torch.no_grad():
        for _ in range(4):
            planned = compiled(x)
    outs = in_threads(lambda: [compiled(x) for _ in range(2 * AT_LEAST)])
    assert all(torch.equal(out, planned) for part in outs for out in part)
    (session,) = sessions_of(compiled)
    assert session.pace.calls == 8 * AT_LEAST + 1 and 1 <= session.pace.measured <= 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_of_a_data_loader_leave_the_session_alone():
    model = mlp()
    compiled = online_compile(model, **WATCHFUL)
    rows = DataLoader(TensorDataset(torch.randn(64, 32)), batch_size=8, num_workers=2)
    with torch.no_grad():
        for _ in range(2):
            for (x,) in rows:
                compiled(x)
    (session,) = sessions_of(compiled)
    assert session.first_calls == 3 and session.pace.calls == 16 - 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_serves_and_does_not_measure():
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and the child would wait for them
    model, x = mlp(), torch.randn(16, 32)
    compiled = online_compile(model, **WATCHFUL)
    with torch.no_grad():
        for _ in range(4):
            compiled(x)
        (session,) = sessions_of(compiled)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for _ in range(2 * AT_LEAST):
                compiled(x)
            os.write(write, str(session.pace.measured).encode())
            os._exit(0)
        os.waitpid(child, 0)
    assert os.read(read, 10) == b"0"
