"""Pins: a plan is refused on other hardware and by another version of the model, with what changed."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.dispatch.pin import check_hardware, check_model, cpu, pins
from loka_compile.spec.plan import PlanError, load_plan
from loka_compile.spec.target import TARGETS

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

CPU = TARGETS["cpu"]


class Tower(nn.Module):
    def __init__(self, width=48, norm=False):
        super().__init__()
        self.first, self.second = nn.Linear(32, width), nn.Linear(width, 16)
        self.third = nn.Linear(16, 16) if norm else nn.Identity()

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()))


@pytest.fixture(scope="module")
def profile():
    torch.manual_seed(0)
    model = Tower()
    with loka.probe(model) as probe, torch.no_grad():
        model(torch.randn(64, 32))
    return probe.profile


@pytest.fixture(scope="module")
def plan(profile):
    """A pinned plan of Tower, made as people do: probe, dispatch."""
    return loka.dispatch(profile, options=loka.Options(min_speedup=0, recipes=("int8_rowwise",)))


def run(model, plan, x):
    compiled = torch.compile(model, backend="loka", options={"plan": plan})
    with torch.no_grad():
        compiled(x)
    return compiled


def test_a_plan_is_pinned_to_this_machine_and_to_versions(plan, tmp_path):
    assert plan.pins == pins(CPU) and plan.pins["hardware"] == cpu() and plan.pins["torch"] == torch.__version__
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").pins == plan.pins
    assert plan.unpinned().pins == {} and plan.unpinned().fingerprint == plan.fingerprint


def test_the_same_model_is_served_whatever_its_weights(plan, op_by_op):
    torch.manual_seed(1)
    compiled = run(Tower(), plan, torch.randn(7, 32))
    assert len(loka.plan(compiled).lowered) == 2
    run(Tower(), loka.plan(compiled), torch.randn(7, 32))  # what a compiled model runs under is pinned too


def test_other_hardware_is_refused_with_what_changed(plan, op_by_op):
    elsewhere = replace(plan, pins={**plan.pins, "hardware": "Xeon 9999 avx2", "torch": "2.12.0"})
    with pytest.raises(Exception, match="other hardware") as caught:
        run(Tower(), elsewhere, torch.randn(64, 32))
    text = str(caught.value)
    assert f"hardware: Xeon 9999 avx2 -> {cpu()}" in text and f"torch: 2.12.0 -> {torch.__version__}" in text
    assert "unpinned()" in text
    assert len(loka.plan(run(Tower(), elsewhere.unpinned(), torch.randn(64, 32))).lowered) == 2


def test_on_other_hardware_a_plan_may_be_made_anew_from_its_profile(plan, profile, op_by_op, tmp_path):
    elsewhere = replace(plan, pins={**plan.pins, "hardware": "Xeon 9999 avx2"})
    elsewhere.save(tmp_path / "plan.json")
    profile.save(tmp_path / "profile.safetensors")
    anew = {"profile": tmp_path / "profile.safetensors", "on_other_hardware": "redispatch", "race": False}
    options = {"plan": tmp_path / "plan.json", **anew, "min_speedup": 0, "recipes": ("uint8_rowwise", "bf16")}
    compiled = torch.compile(Tower(), backend="loka", options=options)
    with pytest.warns(UserWarning, match="made on other hardware, a new one") as caught, torch.no_grad():
        compiled(torch.randn(64, 32))
    made = loka.plan(compiled)
    assert {key: decision.chosen.recipe for key, decision in made.decisions.items()}["first#0:output"] == "bf16"
    assert made.pins["hardware"] == cpu() and made.origin.startswith("profile ")
    (text,) = (str(each.message) for each in caught if "made on other hardware" in str(each.message))
    assert f"hardware: Xeon 9999 avx2 -> {cpu()}" in text
    assert f"~ first#0:output: {plan.decisions['first#0:output'].chosen} -> bf16/aten (" in text


def test_here_the_plan_is_followed_whatever_the_profile_says(plan, profile, op_by_op):
    options = {"plan": plan, "profile": profile, "on_other_hardware": "redispatch", "recipes": ()}
    compiled = torch.compile(Tower(), backend="loka", options=options)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        compiled(torch.randn(64, 32))
    assert len(loka.plan(compiled).lowered) == 2 and loka.plan(compiled).origin == plan.origin


def test_without_a_profile_nothing_can_be_made_anew(plan):
    with pytest.raises(ValueError, match="on_other_hardware: expected a profile beside the plan"):
        loka.Options(plan=plan, on_other_hardware="redispatch")


def test_other_versions_of_libraries_are_a_warning(plan):
    with pytest.warns(UserWarning, match=r"other versions: loka: 0\.0\.1 -> "):
        check_hardware(replace(plan, pins={**plan.pins, "loka": "0.0.1"}), CPU, "cpu")


def test_a_plan_for_a_gpu_may_be_looked_at_here(plan):
    gpu = replace(plan, target="h100", pins=pins(TARGETS["h100"]))
    assert gpu.pins["hardware"] == "h100"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_hardware(gpu, TARGETS["h100"], "cpu")


def test_another_version_of_the_model_is_refused_with_what_changed(plan, op_by_op):
    with pytest.raises(Exception, match="another version of the model") as caught:
        run(Tower(width=64, norm=True), plan, torch.randn(64, 32))
    text = str(caught.value)
    assert "~ first#0:output: (64, 32) @ (32, 48) in float32 -> (64, 32) @ (32, 64) in float32" in text
    assert "+ third#0:output: (64, 16) @ (16, 16) in float32, which the plan does not know" in text


def test_another_dtype_is_another_model(plan, op_by_op):
    with pytest.raises(Exception, match=r"in float32 -> .* in bfloat16"):
        run(Tower().bfloat16(), plan, torch.randn(64, 32, dtype=torch.bfloat16))


def test_a_plan_made_for_serving_may_be_trained_with(plan, op_by_op):
    model = Tower()
    torch.compile(model, backend="loka", options={"plan": plan})(torch.randn(64, 32)).sum().backward()
    assert model.first.weight.grad is not None


def test_without_pins_nothing_is_checked(plan, sites_of):
    (sites,) = sites_of(Tower(width=64), torch.randn(4, 32))
    with pytest.raises(PlanError):
        check_model(plan, sites)
    check_model(plan.unpinned(), sites)
    check_hardware(replace(plan, pins={}), CPU, "cpu")


def test_a_plan_of_another_model_is_one_short_error_and_no_warning(plan, op_by_op):
    with warnings.catch_warnings(), pytest.raises(PlanError, match="for another model: it decides first#0") as caught:
        warnings.simplefilter("error")
        run(nn.Sequential(nn.Linear(32, 8)), plan, torch.randn(64, 32))
    lines = str(caught.value).splitlines()
    assert "+ 0#0:output: (64, 32) @ (32, 8) in float32" in lines[1] and "unpinned" in lines[-1]
    assert len(lines) == 3 and len(caught.traceback) < 12
