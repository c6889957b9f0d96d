"""What the README shows runs, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest

from examples.exfm import __main__ as commands
from examples.exfm.options import parser_of

FOLDER = Path(__file__).parents[3] / "examples" / "exfm"
README = (FOLDER / "README.md").read_text()


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", README, re.S | re.M):
        exec(block, names)
    assert names["logits"].shape == (64,)
    assert 0 < names["results"]["students"]["mine"]["total"]["rows"] <= 4000


def test_its_commands_are_commands():
    shown = re.findall(r"^python -m examples\.exfm (.*)$", README, re.M)
    assert len(shown) >= 6
    parser = parser_of({name: getattr(commands, name) for name in ("run", "replay", "score", "train", "evaluate")}, "")
    for command in shown:
        parser.parse_args(shlex.split(command, comments=True))


def test_its_files_are_there():
    for cell in re.findall(r"^\| (`[^|]*) \|", README, re.M):
        names = re.findall(r"`([\w/]+\.py)`", cell)
        folder = names[0].rpartition("/")[0] if names else ""
        for name in names:
            assert (FOLDER / name).exists() or (FOLDER / folder / name).exists(), name


@pytest.mark.parametrize("counted", re.findall(r"`([a-z]+_[a-z_]+)`", README.split("## Faults")[1].split("\n## ")[0]))
def test_its_counters_are_counted(counted):
    code = "".join(path.read_text() for path in FOLDER.rglob("*.py"))
    assert f'"{counted}"' in code, counted
