"""loka.suggest_compskip and `loka compskip suggest`: contributions by hand, FLOPs, and schedules that then apply."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.cli import main

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

D = 8


class Block(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.mix, self.ffn, self.pool, self.gain = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2), gain

    def forward(self, x, total):
        x = x + self.gain * self.mix(x)
        x += self.ffn(x)  # in place
        return x, total + self.pool(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(gain) for gain in (1.0, 1e-3))

    def forward(self, x):
        total = 0
        for block in self.blocks:
            x, total = block(x, total)
        return total


def example():
    torch.manual_seed(0)
    return Model(), (torch.randn(5, D),)


def test_contributions_are_those_by_hand():
    model, (x,) = example()
    batches = [(x,), (torch.randn(7, D),)]
    suggestion = loka.suggest_compskip(model, batches)
    rows = {(row.path, row.action): row for row in suggestion.rows}
    assert set(rows) == {
        ("blocks.0.mix", "skip"),
        ("blocks.0.ffn", "skip"),
        ("blocks.1.mix", "skip"),
        ("blocks.1.ffn", "skip"),
        ("blocks.1.pool", "reuse"),
    }
    with torch.no_grad():
        x = torch.cat([batch[0] for batch in batches])
        mixed = x + model.blocks[0].mix(x)
        first = mixed + model.blocks[0].ffn(mixed)
        tiny = 1e-3 * model.blocks[1].mix(first)
        last = first + tiny
        last = last + model.blocks[1].ffn(last)
        pools = model.blocks[1].pool(last), model.blocks[0].pool(first)
    expected = {
        ("blocks.0.mix", "skip"): (mixed - x).norm() / x.norm(),
        ("blocks.1.mix", "skip"): tiny.norm() / first.norm(),
        ("blocks.1.pool", "reuse"): (pools[0] - pools[1]).norm() / pools[0].norm(),
    }
    for key, value in expected.items():
        assert rows[key].contribution == pytest.approx(float(value), rel=1e-3)
    assert rows["blocks.0.mix", "skip"].flops == 2 * 5 * D * D  # of the first batch, as is the whole
    assert suggestion.flops == 2 * 5 * D * (4 * D + 4) and suggestion.batches == 2
    assert suggestion.rows[0].path == "blocks.1.mix" and suggestion.rows[-1].together <= 1


def test_its_schedule_applies(op_by_op):
    model, (x,) = example()
    schedule = loka.suggest_compskip(model, [(x,)]).schedule(0.2)
    assert schedule == loka.CompSkip("blocks.*", {"1": ["mix"]})
    compiled = torch.compile(model, backend="loka", options={"compskip": schedule, "recipes": ()})
    with torch.no_grad():
        compiled(x.clone())
    assert "skipped: blocks.1.mix" in " ".join(str(loka.explain(compiled)).split())


def test_what_it_refuses():
    model, (x,) = example()
    with pytest.raises(ValueError, match="a share of FLOPs that all rows together reach"):
        loka.suggest_compskip(model, [(x,)]).schedule(1.5)
    with pytest.raises(ValueError, match="at least one batch"):
        loka.suggest_compskip(model, [])
    nothing = loka.suggest_compskip(nn.Sequential(nn.Linear(D, D)), [(x,)])
    assert not nothing.rows and "no branch can be proven" in str(nothing)


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "blocks_example.py").write_text(
        "from torch import nn\nimport torch\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.mix = nn.Linear(8, 8)\n"
        "    def forward(self, x):\n        return x + self.mix(x)\n"
        "def example():\n    return nn.Sequential(nn.Sequential(Block(), Block())), (torch.randn(5, 8),)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["compskip", "suggest", "blocks_example:example", "--json", "out.json", "--share", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "skip" in out and '{"layers": "0.*", "skip": {' in out
    assert {row["path"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]} == {"0.0.mix", "0.1.mix"}
    assert main(["compskip", "suggest", "blocks_example:example", "--share", "3"]) == 2
    assert "--share: expected a share" in capsys.readouterr().err
