"""Cells are compared seed by seed, and an order that does not hold is said not to."""

import json

import pytest

from examples.exfm import bench_arms
from examples.exfm.arms import Cell, _lines, difference, grid, markdown, orders

NONE, SHARED, AUXILIARY, ADAPTER = (Cell(arm) for arm in ("none", "shared", "auxiliary", "adapter"))


def test_every_combination_that_means_something_once():
    cells = grid(("none", "shared", "auxiliary"), (0.0, 2.0), betas=(1.0, 5.0), weights=(1.0, 3.0))
    assert len(cells) == 1 + 2 * 2 + 2 * 2 * 2 and cells[0] == NONE
    assert str(Cell("auxiliary", 2.0, 5.0, 1.0, 3.0)) == "auxiliary, 2 d, β=5, w=3" and str(NONE) == "none"
    assert len(grid(("shared",), betas=(1.0, 5.0))) == 1


def test_differences_are_paired():
    """The seeds' own spread is ten times the difference, which is sure all the same."""
    found = {NONE: {0: 0.90, 1: 0.80, 2: 0.85}, SHARED: {0: 0.90 * 0.99, 1: 0.80 * 0.99, 2: 0.85 * 0.988}}
    change = difference(found, SHARED, NONE)
    assert change.mean == pytest.approx(-0.0107, abs=1e-4) and change.seeds == 3 and change.sure > 10
    assert difference(found, NONE, NONE).mean == 0


def test_orders_hold_or_do_not():
    found = {
        NONE: {0: 0.9, 1: 0.9},
        SHARED: {0: 0.91, 1: 0.92},
        AUXILIARY: {0: 0.88, 1: 0.89},
        ADAPTER: {0: 0.88, 1: 0.88},
    }
    said = orders(found, 0.0, list(found))
    assert [(words, holds) for words, holds, _ in said] == [
        ("shared better than none", False),
        ("auxiliary better than shared", True),
        ("adapter better than auxiliary", True),
    ]
    turned = found | {
        Cell("shared", beta=1.0, weight=3.0): {0: 0.1, 1: 0.1},
        Cell("auxiliary", beta=5.0): {0: 1.0, 1: 1.0},
    }
    assert orders(turned, 0.0, list(turned)) == said  # of dials that were turned those by default are compared
    without = [cell for cell in turned if cell != AUXILIARY]
    assert orders(turned, 0.0, without)[1][2].mean > 0  # a beta of 5 is all there is
    lines = markdown({"drama": found}).splitlines()
    assert len(lines) == 6 and "+1.67%" in lines[3] and "| drama | none | 0.9000" in lines[2]


def test_the_bench_rehearses_and_goes_on(tmp_path, capsys):
    command = ["--work", str(tmp_path / "w"), "--quick", "--json", str(tmp_path / "found.json")]
    command += ["--arms", "none", "shared", "auxiliary", "adapter", "--verticals", "stories"]
    results = bench_arms.main(command)
    assert len(results["cells"]) == 2 * (1 + 3 * 2) and len(results["orders"]) == 2 * 3
    assert {cell["delay"] for cell in results["cells"]} == {0.0, 1.0}
    assert json.loads((tmp_path / "found.json").read_text())["skip"] == 0
    assert bench_arms.main(command) == results
    assert (tmp_path / "w" / bench_arms.PLOT).stat().st_size > 1000
    assert "stories, delay 1 d: shared better than none" in capsys.readouterr().out


def test_a_picture_has_a_line_an_arm_along_each_dial_that_was_turned():
    cells = grid(("none", "auxiliary", "adapter"), (0.0, 2.0), betas=(1.0, 5.0))
    found = {cell: {0: 0.9 - 0.01 * (cell.arm != "none") + 0.001 * cell.delay, 1: 0.9} for cell in cells}
    lines = _lines(found, "delay", {"delay": 0.0, "beta": 1.0, "alpha": 1.0, "weight": 1.0})
    assert set(lines) == {"auxiliary", "adapter"} and set(lines["adapter"]) == {0.0, 2.0}
    assert lines["adapter"][0.0].mean == pytest.approx(-0.01 / 0.9 / 2) and lines["adapter"][2.0].mean > -0.005
    assert set(_lines(found, "beta", {"delay": 2.0, "beta": 1.0, "alpha": 1.0, "weight": 1.0})["adapter"]) == {1.0, 5.0}
