"""`loka report`: what it writes, and one line with exit code 2 for what is wrong."""

from __future__ import annotations

import json

import pytest

from loka_compile import cli
from loka_compile.report.page import as_json

MODEL = """
import torch

def example():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU()).eval(), (torch.ones(8, 32),)
"""


@pytest.fixture
def here(tmp_path, monkeypatch, case, report):
    monkeypatch.chdir(tmp_path)
    case.plan.save("plan.json")
    (tmp_path / "report.json").write_text(as_json(report))
    (tmp_path / "cut.json").write_text(case.plan.to_json()[:99])
    return tmp_path


def run(capsys, *arguments):
    code = cli.main(["report", *arguments])
    said = capsys.readouterr()
    return code, said.out.strip(), said.err.strip()


def test_a_file_becomes_a_page_and_the_other_formats(here, capsys, valid):
    tools = ("--json", "out.json", "--model-explorer", "graphs", "--trace", "trace.json")
    code, out, _ = run(capsys, "report.json", "--out", "out.html", *tools)
    assert code == 0
    written = [
        "out.html",
        "out.json",
        *(f"graphs/{n}.json" for n in ("graphs", "error", "time", "bytes")),
        "trace.json",
    ]
    assert out == f"written: {' '.join(written)}"
    assert (here / "out.html").read_text().startswith("<!doctype html>")
    assert (here / "out.json").read_text() == (here / "report.json").read_text()
    assert valid(json.loads((here / "out.json").read_text())) == []


def test_two_files_are_compared(here, capsys):
    code, *_ = run(capsys, "plan.json", "report.json", "--json", "both.json")
    both = json.loads((here / "both.json").read_text())
    assert code == 0 and both["kind"] == "comparison" and (here / "report.html").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("cut.json",), "cut.json is not JSON"),
        (("absent.json",), "cannot read absent.json"),
        (("plan.json", "plan.json", "plan.json"), "expected one or two things to report, got 3"),
        (("plan.json", "--out", "no/such/folder.html"), "cannot write no/such/folder.html"),
        (("nowhere:example",), "cannot import nowhere"),
        (
            ("plan.json", "--target", "h100", "--training"),
            "for which --target, --training means nothing",
        ),
    ],
)
def test_what_is_wrong_is_one_line(here, capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("loka: ") and words in err and "\n" not in err


@pytest.mark.slow
def test_a_factory_is_compiled_and_two_targets_compared(here, capsys, monkeypatch):
    (here / "report_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(here))
    code, *_ = run(capsys, "report_models:example", "--target", "h100", "--target", "b200", "--json", "both.json")
    both = json.loads((here / "both.json").read_text())
    assert code == 0 and both["names"] == [f"report_models:example on {name}" for name in ("h100", "b200")]
    assert [both[side]["kind"] for side in "ab"] == ["compilation"] * 2
