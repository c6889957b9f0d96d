"""The script for a GPU, without one: its formulas against the ops' references, its parts, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.bench import gpu_models, gpu_numerics, on_a_gpu


@pytest.mark.parametrize("name", gpu_numerics.cases())
def test_a_reference_agrees_with_the_formula_in_float64(name):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for output in gpu_numerics.cases()[name](device):
        assert output.share <= 1, output.name


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 2.1]), torch.tensor([1.0, float("nan")])])
def test_a_wrong_value_is_more_than_is_allowed(wrong):
    want = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert gpu_numerics.Output("right", want.float(), want, torch.bfloat16, 0.0).share <= 1
    assert gpu_numerics.Output("wrong", wrong, want, torch.bfloat16, 0.0).share > 1


def test_every_op_that_has_a_triton_kernel_is_a_case():
    specimens = on_a_gpu.specimens_by_module("sm_90")
    modules = {re.sub("_(launch|kernel|specimens)$", "", module) for module in specimens}
    named = {name.split()[0] for name in gpu_numerics.cases()} | {"gdpa_backward", "gdpa_pffn"}  # in gdpa's and pffn's
    assert modules <= named


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no GPU here; --dry-run"):
        on_a_gpu.main([])


def test_a_dry_run_does_all_but_the_gpu(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    body = on_a_gpu.main(["--dry-run", "--parts", "numerics", "kernels", "--out", str(out)])
    assert json.loads(out.read_text()) == body
    numerics, kernels = body["parts"]["numerics"], body["parts"]["kernels"]
    assert len(numerics["rows"]) == len(gpu_numerics.cases()) and all(row["right"] for row in numerics["rows"])
    assert kernels["rows"] and not kernels["left"] and all(row["us"] == {} for row in kernels["rows"])
    assert "of what is allowed" in capsys.readouterr().out


def test_a_model_steps_with_drawn_inputs():
    model, inputs = gpu_models.made("dlrm", 8, "cpu")
    out = gpu_models.step(model, model, inputs, training=True)
    assert out.isfinite().all() and all(p.grad is not None for p in model.parameters())


def test_a_row_that_fails_is_a_row_and_time_that_is_up_leaves_the_rest(tmp_path, monkeypatch):
    def breaks():
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(on_a_gpu.PARTS, "numerics", lambda dry: {"broken": breaks, "fine": lambda: {"right": True}})
    options = on_a_gpu.parse(["--part", "numerics", "--seconds", "60", "--out", str(tmp_path / "part.json")])
    rows = on_a_gpu.alone("numerics", options)["rows"]
    assert rows == [{"name": "broken", "failed": "RuntimeError: no kernel image"}, {"name": "fine", "right": True}]
    options.seconds = -1.0
    assert on_a_gpu.alone("numerics", options) == {"rows": [], "left": ["broken", "fine"]}


def test_a_process_that_dies_is_told(monkeypatch):
    options = on_a_gpu.parse(["--dry-run"])
    monkeypatch.setattr(on_a_gpu, "__file__", "/no/such/script.py")
    assert "its process ended with 2" in on_a_gpu.apart("numerics", options, 60)["ended"]


def test_a_checkout_that_is_not_installed_is_laid_out(tmp_path):
    site = on_a_gpu.laid_out(tmp_path)
    packages = str(Path(torch.__file__).parents[1])
    lines = (
        f"import sys; sys.path[:0] = [{str(site)!r}, {packages!r}]",
        "from torch._dynamo.backends.registry import lookup_backend, list_backends",
        "import loka_compile.kernels.fm.fm, loka_compile.passes.base",
        "print(lookup_backend('loka').__module__, loka_compile.__file__)",
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.split() == ["loka_compile.backend", str(site / "loka_compile" / "__init__.py")], done.stderr
