"""Demotions on disk: added to, shared, and loud where they cannot be read or written."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest

from loka_compile.online.memory import Memory


def test_demotions_add_up_over_processes(home):
    Memory("graph").demote({"a#0:output": "first"})
    script = "from loka_compile.online.memory import Memory; Memory('graph').demote({'b#0:output': 'second'})"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert Memory("graph").demoted() == {"a#0:output": "first", "b#0:output": "second"}
    assert Memory("another").demoted() == {}
    assert [path.name for path in (home / "online").iterdir()] == ["graph.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "other"}', '{"format": "loka-demotions"}'])
def test_a_damaged_file_is_said(home, text):
    memory = Memory("graph")
    memory.demotions.parent.mkdir(parents=True)
    memory.demotions.write_text(text)
    with pytest.warns(UserWarning, match="cannot read the demotions"):
        assert memory.demoted() == {}


def test_what_cannot_be_kept_is_said(home):
    (home / "online").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="a restart forgets this"), warnings.catch_warnings(action="default"):
        Memory("graph").demote({"a#0:output": "first"})


def test_the_file_reads_well(home):
    Memory("graph").demote({"a#0:output": "MERE 0.3, budget 0.2"})
    body = json.loads((home / "online" / "graph.json").read_text())
    assert body == {"format": "loka-demotions", "demoted": {"a#0:output": "MERE 0.3, budget 0.2"}}
