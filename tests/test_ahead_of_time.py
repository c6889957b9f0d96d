"""torch.compile(...).aot_compile: what is compiled with a profile is saved, and loaded where nobody imported loka."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import loka_compile as loka

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.b(self.a(x).relu())
"""

LOAD = """
import sys
import torch
from net_to_save import Net

saved = torch.load("results.pt")
net = Net()
net.load_state_dict(saved["weights"])
torch.set_num_threads(saved["threads"])
assert "loka_compile" not in sys.modules
with open("inference.bin", "rb") as file, torch.no_grad():
    assert torch.equal(torch.compiler.load_compiled_function(file)(net, saved["x"]), saved["out"])
with open("training.bin", "rb") as file:
    torch.compiler.load_compiled_function(file)(net, saved["x"]).square().mean().backward()
for parameter, gradient in zip(net.parameters(), saved["gradients"]):
    assert torch.equal(parameter.grad, gradient)
print("as saved")
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A model whose class another process can import, in the folder it is saved to."""
    (tmp_path / "net_to_save.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net_to_save", raising=False)
    import net_to_save

    torch.manual_seed(0)
    with torch._dynamo.config.patch(enable_aot_compile=True):
        yield net_to_save.Net()


def ahead(net, x, **options):
    given = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False, **options}
    compiled = torch.compile(net, backend="loka", fullgraph=True, options=given)
    return compiled, compiled.forward.aot_compile(((x,), {}))


def test_saved_with_a_profile_and_loaded_by_another_process(net, tmp_path):
    x = torch.randn(256, 64)
    with loka.probe(net) as probe:
        expected = net(x)
        expected.square().mean().backward()
    wanted = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    with torch.no_grad():
        compiled, serving = ahead(net, x, profile=probe.profile)
        out = serving(net, x)
        assert [row.outcome for row in loka.explain(compiled).found] == ["lowered"] * 2
    assert 0 < (out - expected).norm() < 0.05 * expected.norm()
    compiled, training = ahead(net, x, profile=probe.profile, max_output_error=0.1)
    training(net, x).square().mean().backward()
    assert {row.role for row in loka.explain(compiled).lowered} == {"output", "grad_input", "grad_weight"}
    gradients = [parameter.grad for parameter in net.parameters()]
    for gradient, exact in zip(gradients, wanted, strict=True):
        assert (gradient - exact).norm() < 0.1 * exact.norm()

    serving.save_compiled_function("inference.bin")
    training.save_compiled_function("training.bin")
    results = {"weights": net.state_dict(), "x": x, "out": out, "gradients": gradients}
    results["threads"] = torch.get_num_threads()  # Dynamo guards on them
    torch.save(results, "results.pt")
    (tmp_path / "load.py").write_text(textwrap.dedent(LOAD))
    done = subprocess.run([sys.executable, "load.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith("as saved"), done.stderr[-3000:]


def test_without_one_there_are_no_calls_to_learn_from(net, op_by_op):
    x = torch.randn(256, 64)
    with torch.no_grad(), pytest.warns(UserWarning, match="no calls to learn a plan from; give a profile or a plan"):
        compiled, serving = ahead(net, x)
        assert torch.equal(serving(net, x), net(x))
    assert "compiled ahead of time" in loka.explain(compiled).origin


def test_of_a_method(net, op_by_op):
    """Compiled as any other call where nothing is saved."""
    x = torch.randn(256, 64)
    with torch.no_grad():
        with loka.probe(net) as probe:
            net(x)
        given = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False, "profile": probe.profile}
        compiled = torch.compile(net.forward, backend="loka", fullgraph=True, options=given)
        serving = compiled.aot_compile(((x,), {}))
        assert 0 < (serving(net, x) - net(x)).norm() < 0.05 * net(x).norm()
