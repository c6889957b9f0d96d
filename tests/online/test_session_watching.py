"""A session after its plan: one call in many is measured again, and what strays is demoted for good."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import loka_compile as loka
from loka_compile.online.pace import AT_LEAST
from tests.online.sessions import WATCHFUL, compilations, drift, mlp, online_compile, outliers, sessions_of

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "op_by_op", "home")]


def test_one_call_in_many_is_measured_again_and_changes_nothing():
    model, x = mlp(), torch.randn(16, 32)
    compiled = online_compile(model, **WATCHFUL)
    with torch.no_grad():
        for _ in range(3):
            compiled(x)
        planned = compiled(x)
        state = torch.get_rng_state()
        for _ in range(3 * AT_LEAST):
            assert torch.equal(compiled(x), planned)
        assert torch.equal(torch.get_rng_state(), state)
    (session,) = sessions_of(compiled)
    assert session.pace.measured == 3 and compilations() == 1
    assert "3 measured again" in loka.explain(compiled).notes[0]


def test_training_calls_are_measured_again_with_their_gradients():
    model, x = mlp(), torch.randn(16, 32)
    compiled = online_compile(model, **WATCHFUL)
    exact = 0
    reference = torch.autograd.grad(model(x).square().sum(), model[2].weight)[0]
    for _ in range(2 * AT_LEAST + 10):
        model.zero_grad()
        compiled(x).square().sum().backward()
        exact += torch.allclose(model[2].weight.grad, reference, rtol=1e-4)
    (session,) = sessions_of(compiled)
    assert session.pace.measured == 2 and exact == 3 + 2  # the measured calls are the model's own arithmetic


def test_drift_demotes_a_site_once_and_for_good(home):
    model, x = mlp(), torch.randn(64, 32)
    compiled = online_compile(model, **WATCHFUL)
    assert drift(compiled, x, AT_LEAST + 10) == []
    messages = drift(compiled, outliers(x), 4 * AT_LEAST)
    assert len(messages) == 2 and "0#0:output strayed in fp8_tensorwise/" in messages[0]
    assert "MERE" in messages[0] and "budget 0.2" in messages[0] and str(home) in messages[0]
    assert loka.plan(compiled).lowered == [] and compilations() == 1
    assert torch.equal(compiled(x), model(x))

    torch._dynamo.reset()  # as a restart: sessions are gone, the file is not
    again = online_compile(model, **WATCHFUL)
    assert drift(again, x, 10) == [] and loka.plan(again).lowered == []
    assert all("demoted on 20" in row.reason for row in loka.explain(again).rows)


def test_a_demotion_survives_the_process(home):
    script = textwrap.dedent("""
        import sys, torch, warnings, loka_compile as loka
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
        options = {"target": "h100", "min_speedup": 0, "recipes": ("fp8_tensorwise",), "max_output_error": 0.2,
                   "max_probe_overhead": 1e6}
        compiled = torch.compile(model, backend="loka", options=options)
        x = torch.randn(64, 32)
        y = x.clone()
        y[0, 0] = float(sys.argv[1])
        with torch.no_grad():
            for number in range(4):
                compiled(x)
            for number in range(220):
                compiled(y)
            compiled(x)
        print("lowered", len(loka.plan(compiled).lowered))
    """)
    outs = []
    for value in ("1e9", "0.5"):
        run = subprocess.run([sys.executable, "-c", script, value], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        outs.append(run)
    assert outs[0].stdout == outs[1].stdout == "lowered 0\n"
    assert outs[0].stderr.count("strayed") >= 2 and "strayed" not in outs[1].stderr


def test_the_profile_is_saved_in_the_background(home):
    compiled = online_compile(mlp())
    with torch.no_grad():
        for _ in range(5):
            compiled(torch.randn(16, 32))
    (session,) = sessions_of(compiled)
    session._saver.shutdown(wait=True)
    (path,) = (home / "online").glob("*.profile")
    assert set(loka.load_profile(path).sites) == {"0#0:output", "2#0:output"}
