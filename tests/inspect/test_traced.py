"""Under TORCH_TRACE a compilation writes loka's artifacts, which tlparse shows by compile id."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch
import loka_compile as loka

model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval(), torch.ones(4, 8)
with loka.probe(model) as probe, torch.no_grad():
    model(x)
plan = loka.dispatch(probe.profile, target="h100")
compiled = torch.compile(model, backend="loka", options={"plan": plan, "target": "h100"})
with torch.no_grad():
    compiled(x)
"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """The trace of one compilation, in a process of its own."""
    folder = tmp_path_factory.mktemp("trace")
    environment = os.environ | {"TORCH_TRACE": str(folder)}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.log")
    return path


def artifacts(path):
    """Name -> (the line that announces it, the payload behind it)."""
    found, lines = {}, path.read_text().splitlines()
    for at, line in enumerate(lines):
        said = re.search(r"\] (\{.*\})$", line)
        body = json.loads(said[1]) if said else {}
        if "artifact" in body:
            payload = []
            for each in lines[at + 1 :]:
                if not each.startswith("\t"):
                    break
                payload.append(each[1:])
            found[body["artifact"]["name"]] = body, "\n".join(payload)
    return found


def test_the_plan_and_the_record_are_in_the_trace(trace):
    found = artifacts(trace)
    plan, record, said = (found[f"loka_{name}"] for name in ("plan", "record", "explain"))
    assert json.loads(plan[1])["format"] == "loka-plan"
    stages = {stage["pass"]: stage for stage in json.loads(record[1])["stages"]}
    assert {"precision", "lower"} <= set(stages)
    assert stages["precision"]["rejects"] or stages["precision"]["rewrites"]
    assert "0#0:output" in said[1]
    assert len({body["frame_id"] for body, _ in (plan, record, said)}) == 1


def test_tlparse_shows_them(trace, tmp_path):
    program = shutil.which("tlparse", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "tlparse is not installed: pip install -e '.[dev]'"
    out = tmp_path / "shown"
    done = subprocess.run([program, str(trace), "-o", str(out), "--no-browser"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = {path.name for path in out.rglob("loka_*")}
    assert all(any(name.startswith(f"loka_{kind}") for name in shown) for kind in ("plan", "record", "explain")), shown
    assert "loka_plan" in (out / "index.html").read_text()
