"""A preview of one small MLP, made once, seen from all sides. Dynamo, AOTAutograd, Inductor and Triton all run."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.kunlun.pffn import GDPA
from examples.models.wukong import FactorizationMachineBlock
from loka_compile.preview import timeline
from loka_compile.preview.model import kernel_us
from loka_compile.spec.plan import Plan, parse_plan


def mlp(layers: int = 2) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    blocks = [module for _ in range(layers) for module in (nn.Linear(512, 512), nn.LayerNorm(512), nn.ReLU())]
    return nn.Sequential(*blocks), (torch.randn(4096, 512),)


def state() -> tuple[object, ...]:
    """Of this process: what a preview might change."""
    cuda = torch.cuda
    patched = cuda.is_available, cuda.get_device_properties, cuda.current_stream, cuda._lazy_init
    told = cuda.is_available(), cuda.device_count(), cuda.is_initialized(), torch.version.cuda, torch.version.hip
    ours = dict(os.environ), list(sys.path), threading.active_count(), os.getcwd(), torch.get_default_dtype()
    return patched, told, ours, torch.get_rng_state().tolist(), torch.is_grad_enabled()


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model, inputs = mlp()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = state()
    found = loka.preview(model, inputs, sides=["eager", "inductor", "loka"])
    return found, before, state(), model, weights


def test_nothing_of_the_calling_process_changes(made):
    _, before, after, model, weights = made
    assert before == after
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())


def test_inductors_kernels(made):
    """Counted once with an instrument of its own kind for torch 2.13: an addmm and a fused LayerNorm + ReLU a layer,
    34.609 MB and 4.295 GFLOP in all; here within 2 %."""
    side = made[0].side("inductor")
    assert [k.kind for k in side.kernels] == ["library", "triton"] * 2
    assert [k.name for k in side.kernels[::2]] == ["addmm"] * 2
    assert [k.site for k in side.kernels] == ["0", "2", "3", "5"]
    assert side.graphs == 1 and not side.error
    assert side.flops == 2 * 2 * 4096 * 512 * 512
    assert side.bytes == pytest.approx(34.609e6, rel=0.02)
    first, norm = side.kernels[:2]
    assert first.inputs == ("bf16[512]", "bf16[4096, 512]", "bf16[512, 512]") and first.outputs == ("bf16[4096, 512]",)
    assert first.dtype == "bfloat16" and first.resources is None
    assert norm.resources["registers"] > 0 and norm.resources["spills"] == 0 and norm.resources["occupancy"] > 0


def test_eager_runs_every_operator_by_itself(made):
    side = made[0].side("eager")
    assert [k.name for k in side.kernels] == ["addmm", "native_layer_norm", "relu"] * 2
    assert [k.site for k in side.kernels] == ["0", "1", "2", "3", "4", "5"]


def test_loka_has_a_plan_and_does_the_same_work(made):
    side = made[0].side("loka")
    assert not side.error
    assert side.flops == made[0].side("inductor").flops


def test_lokas_plan_has_raced_and_is_never_slower(made):
    found = made[0]
    plan = parse_plan(found.plan)
    assert plan.target == "h100" and len(plan.decisions) == 2 and plan.lowered
    us = found.side("loka").us(found.rates)
    assert plan.raced.startswith(f"{us:.1f} us a step, {found.side('inductor').us(found.rates):.1f} unplanned, ")
    assert f"the plan raced: {plan.raced}" in found.side("loka").notes
    assert found.to_json()["plan"]["raced"] == plan.raced
    assert found.speedup("loka") >= 1.0


def test_times_are_the_roofline_and_say_so(made):
    found = made[0]
    side = found.side("inductor")
    us, bound = kernel_us(side.kernels[0].flops, side.kernels[0].bytes, "bfloat16", found.rates)
    assert us == pytest.approx(side.kernels[0].bytes / (0.92 * 3.35e12) * 1e6 + 2.0) and bound == "memory"
    assert side.us(found.rates) - side.us(found.rates, graphs=True) == pytest.approx(4 * 1.5)
    assert found.speedup("eager") == pytest.approx(side.us(found.rates) / found.side("eager").us(found.rates))
    text = str(found)
    assert (
        "µs modelled" in text
        and "compiled" in text
        and "78% of peak" in text
        and "measured" not in text.replace("not measured", "").replace("measured there on a V100", "")
    )


def test_json_holds_everything(made):
    body = json.loads(json.dumps(made[0].to_json()))
    inductor = next(side for side in body["sides"] if side["name"] == "inductor")
    assert inductor["totals"]["kernels"] == 4 and inductor["totals"]["modelled_us"] > 0
    assert inductor["kernels"][0]["bound_by"] == "memory"


def test_the_picture_is_written_twice(made, tmp_path):
    pytest.importorskip("matplotlib")
    for file in timeline.save(made[0], tmp_path / "step.png"):
        assert file.stat().st_size > 1000


class Parts(nn.Module):
    """Kunlun's block and Wukong's interaction in plain PyTorch, and a call of loka.pffn."""

    def __init__(self) -> None:
        super().__init__()
        self.block = GDPA(64, 2, 32, context_tokens=4, context_width=32)
        self.interaction = FactorizationMachineBlock(16, 2, 64, 16, (64,), 0.0)

    def forward(self, x_sum: torch.Tensor, s: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = s.unflatten(-1, (2, 32)).transpose(1, 2)
        return self.block(x_sum, s), self.interaction(s[:, :16]), loka.pffn(q, k, k, activation="silu")


def test_whole_parts_of_models_run_in_their_own_kernels():
    inputs = torch.randn(8, 4, 32), torch.randn(8, 100, 64), torch.randn(8, 2, 40, 32)
    model, plan = Parts().eval().requires_grad_(False), Plan("h100", {}, origin="nothing is planned")
    side = loka.preview(model, inputs, sides=["loka"], plan=plan).side("loka")
    names = [kernel.name for kernel in side.kernels]
    assert not side.error and names.count("pffn_kernel") == 2 and names.count("fm_kernel") == 1, names
    assert "gdpa_kernel" not in names and not any("norm" in name for name in names), names


class Called(nn.Module):
    """The three ops that loka gives to users, called by a model itself."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return loka.gdpa(q, k, k, activation="silu"), loka.pffn(q, k, k, activation="silu"), loka.fm(x, y)


def test_ops_that_a_model_calls_itself_are_traced_for_a_gpu():
    q, k, x, y = torch.randn(8, 2, 40, 32), torch.randn(8, 2, 40, 32), torch.randn(8, 16, 64), torch.randn(8, 16, 8)
    plan = Plan("h100", {}, origin="nothing is planned")
    side = loka.preview(Called(), (q, k, x, y), sides=["loka"], plan=plan).side("loka")
    names = [kernel.name for kernel in side.kernels]
    assert not side.error and {"gdpa_resident_kernel", "pffn_kernel", "fm_kernel"} <= set(names), (side.error, names)


def test_an_unknown_target_or_side_is_refused():
    model, inputs = mlp()
    with pytest.raises(ValueError, match="got 'h1000'"):
        loka.preview(model, inputs, "h1000")
    with pytest.raises(ValueError, match="expected some of eager"):
        loka.preview(model, inputs, sides=["tvm"])


def test_a_model_that_cannot_travel_says_what_to_do():
    from loka_compile.preview.transport import TransportError

    with pytest.raises(TransportError, match="MODULE:FACTORY"):
        loka.preview(lambda x: x + 1, (torch.randn(4),), sides=["inductor"])


# ---------------------------------------------------------------- what goes wrong, and the command


FACTORIES = """
import torch
from torch import nn

class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        x = self.a(x)
        torch._dynamo.graph_break()
        return self.b(x)

class Dies(nn.Module):
    def forward(self, x):
        if x.is_cuda:
            raise RuntimeError("no such kernel")
        return x * 2

def breaks():
    return Breaks(), (torch.randn(256, 64),)

def dies():
    return Dies(), {"x": torch.randn(8)}

def too_large():
    with torch.device("meta"):
        return nn.Embedding(100_000_000, 1024), (torch.zeros(256, dtype=torch.int64),)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """loka preview of one of FACTORIES: (exit code, what it printed)."""
    (tmp_path / "preview_models.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(factory, *options):
        from loka_compile.cli import main

        code = main(["preview", f"preview_models:{factory}", "--side", "inductor", *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_graph_break_is_named_and_the_rest_is_shown(command, tmp_path):
    code, text = command("breaks", "--json", "out.json")
    assert code == 0
    assert "compiled as 2 graphs" in text and "graph break, 1 times" in text
    [side] = json.loads((tmp_path / "out.json").read_text())[0]["sides"]
    assert [kernel["name"] for kernel in side["kernels"]] == ["addmm", "addmm"]


@pytest.mark.slow
def test_a_side_that_fails_says_why(command):
    code, text = command("dies", "--side", "eager")
    assert code == 1 and text.count("no such kernel") >= 1


@pytest.mark.slow
def test_a_model_beyond_the_gpus_memory_says_so(command):
    code, text = command("too_large")
    assert code == 1 and "at least 204.8 GB" in text and "h100 has 80 GB" in text


def test_a_factory_that_is_not_there(command):
    code, text = command("nothing")
    assert code == 2 and "nothing" in text


@pytest.mark.slow
def test_training_agrees_with_the_counts():
    """Counted once with an instrument of its own kind for torch 2.13: 39 kernels, 23.622 GFLOP, 265.712 MB."""
    side = loka.preview(*mlp(4), training=True, sides=["inductor"]).side("inductor")
    assert len(side.kernels) == 39 and {k.phase for k in side.kernels} == {"forward", "backward"}
    assert side.flops == pytest.approx(23.622e9, rel=0.001) and side.bytes == pytest.approx(265.712e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("training", "rowwise", "tensorwise"), [(False, 9, 17), (True, 76, 67)])
def test_torchao_in_both_forms(training, rowwise, tensorwise):
    pytest.importorskip("torchao")
    found = loka.preview(*mlp(4), training=training, sides=["torchao rowwise", "torchao tensorwise"])
    assert [side.error for side in found.sides] == [""] * 3
    counts = {side.name: len(side.kernels) for side in found.sides}
    assert (counts["torchao rowwise"], counts["torchao tensorwise"]) == (rowwise, tensorwise)
    assert all(side.low_precision == 1.0 for side in found.sides if side.name != "inductor")
    assert found.speedup("torchao tensorwise") < 1.0  # blind float8 loses here
