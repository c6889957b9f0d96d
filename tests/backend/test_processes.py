"""More than one compilation in a process, and what another process finds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import loka_compile as loka
from tests.backend.models import Linear, compiled_with, emulated_linear


def test_two_models_of_one_class_keep_their_own_plans(plan_for, op_by_op):
    a, b, x = Linear(), Linear(), torch.randn(5, 32)
    plans = [plan_for(recipe, a, x) for recipe in ("int8_rowwise", "fp8_rowwise")]
    compiled = [compiled_with(plan, model) for plan, model in zip(plans, (a, b), strict=True)]
    with torch.no_grad():
        for _ in range(2):
            for recipe, model, run in zip(("int8_rowwise", "fp8_rowwise"), (a, b), compiled, strict=True):
                torch.testing.assert_close(run(x), emulated_linear(recipe, x, model.fc.weight, model.fc.bias))
    assert [loka.plan(run) for run in compiled] == plans


def test_one_model_under_two_plans(plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32)
    plans = {recipe: plan_for(recipe, model, x) for recipe in ("int8_rowwise", "fp8_rowwise")}
    with torch.no_grad():
        for recipe, plan in plans.items():
            compiled = compiled_with(plan, model)
            torch.testing.assert_close(compiled(x), emulated_linear(recipe, x, model.fc.weight, model.fc.bias))
            assert loka.plan(compiled) == plan


def test_reset_forgets_and_the_next_call_compiles_anew(plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        first = compiled(x)
        assert len(loka.records(compiled)) == 1
        torch._dynamo.reset()
        with pytest.raises(ValueError, match="call the compiled model once"):
            loka.records(compiled)
        assert torch.equal(compiled(x), first)
        assert len(loka.records(compiled)) == 1


def test_compiled_code_can_be_freed(plan_for, op_by_op):
    import gc
    import weakref

    from loka_compile.inspect.compiled import graphs_of

    model, x = Linear(), torch.randn(5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        compiled(x)
    (graph,) = map(weakref.ref, graphs_of(compiled))
    assert graph() is not None
    del model, compiled
    torch._dynamo.reset()
    gc.collect()
    assert graph() is None


def test_the_backend_is_found_by_its_name_alone():
    script = """
import sys, torch
assert "loka" in torch._dynamo.list_backends()
assert not [name for name in sys.modules if name.startswith("loka")]
model = torch.nn.Linear(8, 4)
x = torch.randn(3, 8)
with torch.no_grad():
    out = torch.compile(model, backend="loka", options={"recipes": ()})(x)
torch.testing.assert_close(out, model(x))
assert "loka_compile.backend" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
