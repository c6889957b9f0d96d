"""The walks of CONTRIBUTING.md, followed to the letter in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, re.S | re.M))
[LINE] = re.findall(r"^PASSES = .*$", PAGE, re.M)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the files of both walks were written, laid out as it is installed."""
    site = tmp_path_factory.mktemp("checkout")
    for folder in ("loka_compile", "passes", "kernels"):
        inside = site if folder == "loka_compile" else site / "loka_compile"
        shutil.copytree(ROOT / folder, inside / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in FILES.items():
        path = site / name if name.startswith("tests/") else site / "loka_compile" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    stage = site / "loka_compile" / "passes" / "joint" / "__init__.py"
    text = re.sub(r"^PASSES = .*$", LINE, stage.read_text(), flags=re.M)
    imported = "from loka_compile.passes.joint.drop_negations import DropNegations"
    stage.write_text(text.replace("\n\nfrom", f"\n\n{imported}\nfrom", 1))
    return site


def run(checkout: Path, *command: str) -> str:
    own = {"PYTHONPATH": str(checkout), "LOKA_CACHE_DIR": str(checkout / "cache"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=checkout, capture_output=True, text=True, env=os.environ | own
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_both_newcomers_pass_their_own_tests(checkout):
    tests = [name for name in FILES if name.startswith("tests/")]
    assert "4 passed" in run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def test_a_pass_is_known_by_its_file(checkout):
    script = """
import loka_compile
from loka_compile.passes import PIPELINE
from loka_compile.spec.options import Options
off = Options(passes={"drop_negations": False})
print(loka_compile.__file__, PIPELINE.stages[3][0].name, len(PIPELINE.names) - len(PIPELINE.select(off.passes).names))
"""
    where, name, fewer = run(checkout, "-c", script).split()
    assert Path(where).is_relative_to(checkout)
    assert (name, fewer) == ("drop_negations", "1")


def test_the_pages_pass_list_is_the_real_one_and_one_more():
    real = re.search(r"^PASSES = .*$", (ROOT / "passes" / "joint" / "__init__.py").read_text(), re.M)
    assert real and LINE.replace("DropNegations(), ", "") == real[0]
