"""The `loka` command: what it prints, and one line with exit code 2 for everything that can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sympy
import torch

from loka_compile import __version__, cli
from loka_compile.spec.decision import KEPT, Candidate, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from tests.helpers import INT_MM

LOKA = Path(sys.executable).with_name("loka")

MODELS = """
import torch
from torch import nn

class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(32, 48)

    def forward(self, x):
        return {"logits": [self.up(x).relu()]}

def example():
    return Tower(), (torch.ones(8, 32),)

def by_name():
    return Tower(), {"x": torch.ones(8, 32)}

def nothing_to_train():
    return torch.sin, (torch.ones(3),)

def wrong_shape():
    return Tower(), (torch.ones(8, 31),)

def raising():
    raise RuntimeError("no data here\\nsecond line")

def only_a_model():
    return Tower()

def a_bare_tensor():
    return Tower(), torch.ones(8, 32)

NOT_CALLABLE = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch, fresh_dynamo):
    """A folder with some models and a plan, which is the current directory."""
    (tmp_path / "cli_models.py").write_text(MODELS)
    (tmp_path / "cli_broken.py").write_text("import torch\nimport not_there_at_all\n")
    plan().save(tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("cli_models", "cli_broken"):
        sys.modules.pop(name, None)


def plan() -> Plan:
    def decision(role: str, *sizes: int) -> Decision:
        sizes = (sympy.Integer(size) for size in sizes)
        site = Site(f"up#0:{role}", "addmm", role, *sizes, torch.float32, fqn="up", gradient="")
        return Decision(site, Candidate("int8_rowwise", "aten"), "by hand")

    decisions = (decision("output", 1, 8, 48, 32), decision("grad_weight", 1, 48, 32, 8))
    return Plan("cpu", {each.site.key: each for each in decisions}, origin="by hand")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        (["cli_models:by_name"], ["loka.frozen_int_mm"]),
        (["cli_models:example", "--training"], [INT_MM, INT_MM]),
    ],
)
def test_explain_with_a_plan(here, capsys, options, kernels):
    code, out, err = run(capsys, "explain", *options, "--plan", "plan.json", "--json", "out.json")
    assert (code, err) == (0, "")
    assert "int8_rowwise/aten" in out and "plan from by hand" in out
    body = json.loads((here / "out.json").read_text())
    assert [row["runs_as"] for row in body["rows"] if row["lowered"]] == kernels


def test_explain_says_why(here, capsys):
    asked = ("explain", "cli_models:example", "--plan", "plan.json", "--why")
    code, out, err = run(capsys, *asked, "up")
    assert (code, err) == (0, "") and out.startswith("  up#0:output\n") and "SQNR" not in out
    assert run(capsys, *asked, "uq") == (2, "", "loka: --why: no site 'uq'; the nearest: up\n")


def test_the_installed_command_finds_modules_of_the_current_directory(here):
    done = subprocess.run(
        [LOKA, "explain", "cli_models:example", "--plan", "plan.json"], capture_output=True, text=True, cwd=here
    )
    assert done.returncode == 0, done.stderr
    assert "loka.frozen_int_mm" in done.stdout


def test_the_installed_command_fails_in_one_line(here):
    done = subprocess.run([LOKA, "explain", "cli_broken:example"], capture_output=True, text=True, cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("loka: cannot import cli_broken: ModuleNotFoundError: No module named 'not_there_at_all'")


WRONG = {
    "cli_models": "expected MODULE:FACTORY, such as mymodel:example; got 'cli_models'",
    ":example": "expected MODULE:FACTORY",
    "no_such_module:example": "cannot import no_such_module: ModuleNotFoundError",
    "cli_models:absent": "cli_models has no callable 'absent'",
    "cli_models:NOT_CALLABLE": "cli_models has no callable 'NOT_CALLABLE'",
    "cli_models:raising": "cli_models:raising failed: RuntimeError: no data here (cli_models.py:",
    "cli_models:only_a_model": "cli_models:only_a_model must return (model, inputs); it returned a Tower",
    "cli_models:a_bare_tensor": "cli_models:a_bare_tensor: inputs must be a tuple, or a dict of keywords; got a Tensor",
    "cli_models:wrong_shape --plan plan.json": "compiling cli_models:wrong_shape failed: ",
    "cli_models:nothing_to_train --plan plan.json --training": "--training: no output of the model requires a gradient",
    "cli_models:example --target h10": "target: expected one of cpu, h100",
    "cli_models:example --plan plan.json --target h100": "the plan is for cpu, target='h100' was asked for",
    "cli_models:example --plan absent.json": "cannot read plan absent.json",
    "cli_models:example --plan cli_models.py": "cli_models.py is not JSON",
    "cli_models:example --profile plan.json": "plan.json",
    "cli_models:example --plan plan.json --json no/such/folder.json": "cannot write no/such/folder.json",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_is_wrong_is_said_in_one_line(here, capsys, arguments):
    code, out, err = run(capsys, "explain", *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("loka: ") and WRONG[arguments] in err
    assert err.count("\n") == 1 and "Traceback" not in err


def test_show(here, capsys):
    code, out, err = run(capsys, "plan", "show", "plan.json")
    assert (code, err) == (0, "")
    assert "up#0:grad_weight" in out and "plan: 2 sites, 2 to lower" in out


def test_diff(here, capsys):
    assert run(capsys, "plan", "diff", "plan.json", "plan.json") == (0, "no difference\n", "")
    old = plan()
    changed = replace(old.decisions["up#0:output"], chosen=KEPT, reason="too slow")
    old.with_decision(changed).save("other.json")
    expected = "~ up#0:output: int8_rowwise/aten -> keep (too slow)\n"
    assert run(capsys, "plan", "diff", "plan.json", "other.json") == (1, expected, "")


@pytest.mark.parametrize("command", ["show absent.json", "diff plan.json absent.json", "show damaged.json"])
def test_a_bad_plan_file(here, capsys, command):
    text = (here / "plan.json").read_text()
    (here / "damaged.json").write_text(text.replace('"chosen": "int8_rowwise/aten"', '"chosen": "int9"', 1))
    code, out, err = run(capsys, "plan", *command.split())
    assert (code, out) == (2, "")
    assert err.startswith("loka: ") and err.count("\n") == 1
    assert command.split()[-1] in err


@pytest.mark.parametrize(
    "argv", [[], ["plan"], ["explain"], ["explain", "a:b", "--plan", "x", "--profile", "y"], ["hop"]]
)
def test_wrong_usage(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: loka" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"loka {__version__}\n"


def test_usage_needs_no_torch():
    code = "import sys; from loka_compile import cli; cli._parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
