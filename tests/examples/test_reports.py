"""The files for people: graph folders and the plot, from records and plans made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib
import pytest
import sympy
import torch

from examples.reports import candidates_of, file_name, plot_plans, recipes_of, total_speedup, write_graphs
from loka_compile.spec.decision import KEPT, Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

INT8 = Candidate("int8_rowwise", "aten")
SOURCE = "measured on this CPU"


def decision(key, chosen, scores):
    sizes = dict(zip(("batch", "M", "N", "K"), map(sympy.Integer, (1, 32, 64, 64)), strict=True))
    return Decision(Site(key, "mm", "output", **sizes, dtype=torch.float32), chosen, "by hand", scores)


@pytest.fixture
def plan():
    """One site lowered to INT8; one kept, where nothing is faster, one candidate untimed and one without error."""
    lowered = {
        "keep": Score(time_us=100.0, time_source=SOURCE),
        "bf16/aten": Score(0.004, time_us=50.0, time_source=SOURCE),
        "int8_rowwise/aten": Score(0.02, time_us=20.0, time_source=SOURCE),
    }
    kept = {
        "keep": Score(time_us=10.0, time_source=SOURCE),
        "bf16/aten": Score(0.005, time_us=40.0, time_source=SOURCE),
        "int8_rowwise/aten": Score(0.0, time_us=30.0, time_source=SOURCE),
        "fp8_rowwise/aten": Score(0.3),
    }
    decisions = {"a#0:output": decision("a#0:output", INT8, lowered), "b#0:output": decision("b#0:output", KEPT, kept)}
    return Plan("cpu", decisions)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(plans): the figure that was saved."""
    from matplotlib import pyplot

    def draw(plans):
        figures = []
        monkeypatch.setattr(pyplot, "close", figures.append)
        plot_plans(plans, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        monkeypatch.undo()
        pyplot.close(figures[0])
        return figures[0]

    return draw


def test_candidates_are_the_timed_ones_with_an_error(plan):
    assert candidates_of(plan) == [
        ("bf16", 2.0, 0.004, False),
        ("int8_rowwise", 5.0, 0.02, True),
        ("bf16", 0.25, 0.005, False),
    ]
    assert recipes_of([plan]) == ["bf16", "int8_rowwise"]


def test_the_plot_fills_what_was_chosen_and_only_that(plan, drawn):
    (panel,) = drawn({"cpu": plan}).axes
    filled = [tuple(point) for dots in panel.collections if len(dots.get_facecolors()) for point in dots.get_offsets()]
    hollow = [
        tuple(point) for dots in panel.collections if not len(dots.get_facecolors()) for point in dots.get_offsets()
    ]
    assert filled == [(5.0, 0.02)]
    assert sorted(hollow) == [(0.25, 0.005), (2.0, 0.004)]
    assert panel.get_title() == "target cpu: 1 of 2 sites lowered\ntimes measured on this CPU"
    assert {"max MERE", "min speed-up"} <= {text.get_text().strip() for text in panel.texts}


def test_the_shading_is_the_budget(plan, drawn):
    (panel,) = drawn({"cpu": plan}).axes
    (area,) = [p for p in panel.patches if isinstance(p, matplotlib.patches.Rectangle)]
    (left, _), (_, top) = area.get_window_extent().get_points()
    corner = panel.transData.inverted().transform((left, top))
    assert tuple(corner) == pytest.approx((1.05, 0.2), rel=1e-3)


def test_a_panel_per_plan_one_of_them_without_times(plan, drawn):
    untimed = Plan("h100", {"a#0:output": decision("a#0:output", KEPT, {"bf16/aten": Score(0.004)})})
    figure = drawn({"cpu": plan, "h100": untimed, "empty": Plan("h100", {})})
    assert [panel.get_title().splitlines()[-1] for panel in figure.axes[1:]] == ["times unknown"] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bf16", "int8_rowwise", "rejected"]


def test_graph_folders_hold_the_code_and_the_diffs_that_say_something(tmp_path):
    stages = [
        SimpleNamespace(name=name, diff=diff) for name, diff in (("precision", "+a"), ("idle", ""), ("lo/wer", "+b"))
    ]
    record = SimpleNamespace(name="Wukong: forward", before="b", after="a", stages=stages)
    stale = tmp_path / "graphs" / "7-old"
    stale.mkdir(parents=True)
    write_graphs([record, record], tmp_path / "graphs")
    assert sorted(place.name for place in (tmp_path / "graphs").iterdir()) == ["0-Wukong_forward", "1-Wukong_forward"]
    written = {path.name: path.read_text() for path in (tmp_path / "graphs" / "0-Wukong_forward").iterdir()}
    assert written == {"before.py": "b", "after.py": "a", "01-precision.diff": "+a", "03-lo_wer.diff": "+b"}


def test_small_helpers():
    row = lambda before, after: SimpleNamespace(time_before_us=before, time_after_us=after)  # noqa: E731
    assert total_speedup([row(30.0, 10.0), row(10.0, 10.0), row(None, 5.0)]) == 2.0
    assert total_speedup([row(None, None)]) is None
    assert file_name("a b/c") == "a_b_c" and file_name("//") == "graph"
