"""Compiled once for the whole folder: a small model with a module of an evil name. And a browser for its page."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.inspect.explanation import Explanation
from loka_compile.inspect.records import Record
from loka_compile.report import document
from loka_compile.report.page import html
from loka_compile.spec.decision import KEEP
from tests.inspect.conftest import plan_of
from tests.report.browser import Page, browsing

EVIL = "</script><script>alert(1)&amp;"
"""A name that a module can have."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 48)
        self.down = nn.Linear(48, 32)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.add_module(EVIL, nn.Linear(32, 1))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return getattr(self, EVIL)(x).squeeze(1)


@dataclass
class Case:
    """What is asked of what was compiled is asked at once: tests of other files have torch forget it."""

    model: nn.Module
    x: torch.Tensor
    plan: loka.Plan
    compiled: Any
    report: dict[str, Any]
    explanation: Explanation
    records: list[Record]


def unlike(plan):
    """Each site as chosen takes another time."""
    for place, (key, decision) in enumerate(plan.decisions.items()):
        scores = {
            name: score if name == KEEP else replace(score, time_us=40.0 + place)
            for name, score in decision.scores.items()
        }
        yield key, replace(decision, scores=scores)


@pytest.fixture(scope="session")
def case(plan_for):
    """int8 for every linear but the last."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Net(), torch.randn(16, 32)
    plan = plan_of(plan_for("int8_rowwise", model, x, only=lambda site: EVIL not in site.fqn), "measured on this CPU")
    plan = replace(plan, decisions=dict(unlike(plan)))
    compiled = torch.compile(model, backend="loka", options={"plan": plan})
    with torch.no_grad():
        compiled(x)
    compiled(x).sum().backward()
    asked = document.of_compiled(compiled), loka.explain(compiled), list(loka.records(compiled))
    return Case(model, x, plan, compiled, *asked)


@pytest.fixture(scope="session")
def report(case):
    return case.report


@pytest.fixture(scope="session")
def profile(case):
    with loka.probe(case.model) as probe, torch.no_grad():
        case.model(case.x)
    return probe.profile


@pytest.fixture(scope="session")
def preview_json():
    """What `loka preview --json` writes, of a step of three kernels on two sides."""
    from loka_compile.preview.model import rates_of
    from loka_compile.preview.report import Preview
    from loka_compile.preview.result import Kernel, Side
    from loka_compile.spec.target import TARGETS

    mm = Kernel("forward", "library", "mm", "bfloat16", 2 * 512**3, 3 * 512**2 * 2, "up", "", ("bf16[512, 512]",) * 2)
    relu = Kernel("forward", "triton", "triton_poi_relu", "bfloat16", 0, 2**20, "act", "", ("bf16[512, 512]",))
    scaled = Kernel("backward", "triton", "scaled", "float8_e4m3fn", 2 * 512**3, 2**20, "up", "loka.scaled_gemm")
    sides = (
        Side("inductor", (mm, relu, mm)),
        Side("loka", (scaled, scaled), notes=("a note",)),
        Side("eager", error="!"),
    )
    return Preview("net", "h100", True, "inductor", sides, rates_of(TARGETS["h100"])).to_json()


@pytest.fixture(scope="session")
def valid():
    """valid(report): what the schema has against a report, as a list of words; empty if nothing."""
    schema = json.loads((resources.files("loka_compile.report") / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    def check(made):
        kind = "two" if made["kind"] == "comparison" else "one"
        validator = jsonschema.Draft202012Validator({**schema["$defs"][kind], "$defs": schema["$defs"]})
        return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(made)][:5]

    return check


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture
def opened(browser, tmp_path):
    """opened(report): a page of it, which must not have complained or asked a network for anything by the end."""
    pages = []

    def open_page(report, **options):
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(html(report))
        pages.append(Page(browser, path, **options))
        return pages[-1].page

    yield open_page
    for each in pages:
        each.page.close()
        assert each.complaints == [] and each.outside() == []
