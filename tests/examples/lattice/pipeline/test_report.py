"""FLOPs of a request, tables and plot from a run's figures."""

import pytest

from examples.lattice.pipeline import report


def arm(flops, auc):
    scores = {
        f"{d}: {t}": {"auc": auc + i / 100, "ne": 0.9} for i, (d, t) in enumerate((d, t) for d in "ab" for t in "xy")
    }
    groups = [[[0, 0]], [[1, 0]], [[0, 1]], [[1, 1]]] if len(flops) == 4 else [[[0, 0], [1, 0]], [[0, 1], [1, 1]]]
    return {
        "portfolios": scores,
        "flops_by_model": flops,
        "groups": groups,
        "tables": 1000,
        "weights": 500,
        "cpu_seconds": 3.0,
    }


@pytest.fixture
def found():
    return {
        "problem": "toy",
        "backend": "eager",
        "quick": True,
        "batch": 64,
        "partition": {
            "groups": [[[0, 0], [1, 0]], [[0, 1], [1, 1]]],
            "names": [["a: x", "b: x"], ["a: y", "b: y"]],
            "untied": [[0, 0], [0, 1]],
            "explain": ["a: x and b: x: merged, alike 0.67"],
        },
        "filter": {"kept": ["item"]},
        "sketch": {"values": {}, "auc": 0.7, "tried": 2},
        "teacher": {"file": "", "why": "nobody knows"},
        "arms": {"separate": arm([10.0, 20.0, 30.0, 40.0], 0.6), "merged": arm([100.0, 200.0], 0.61)},
        "timing": {
            "training": {"separate": {"eager": 2.0}},
            "serving": {"separate": {"eager": 3.0, "loka": 2.0, "inductor": 4.0}},
        },
    }


def test_a_request_asks_all_models_of_its_domain(found):
    # separate models stand in the order of the groups: (0, 0), (1, 0), (0, 1), (1, 1)
    assert report.request_flops(found["arms"]["separate"]) == ((10 + 30) + (20 + 40)) / 2
    merged = found["arms"]["merged"]
    assert report.request_flops(merged) == 300
    merged["groups"] = [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    assert report.request_flops(merged) == 150  # each domain asks its own model
    assert report.request_flops({"flops_by_model": [70.0], "groups": [[[0, 0], [1, 0], [0, 1]]]}) == 70


def test_a_teacher_reaches_what_networks_learn_from_and_are_tested_on(found):
    found["teacher"] = {"file": "knowledge", "hits": 0.83, "learned": 0.3, "tested": 0.85}
    assert (
        "* teacher: knew 30% of the rows that networks learn from and 85% of the test rows; 83% of the second half"
        in (report.markdown(found))
    )


def test_tables_and_plot(found, tmp_path):
    separate, merged = report.by_arm(found)
    assert merged[:3] == ["merged", "2", "0"] and merged[-2] == "4 of 4" and separate[-2] == ""
    text = report.markdown(found)
    assert (
        "| a: x | 0.6000 | 0.6100 |" in text
        and "* group 1: a: y, b: y; copies" in text
        and "* a: x and b: x: merged" in text
    )
    assert "none: nobody knows" in text and "consolidated is merged, untied" in text and "a rehearsal" in text
    assert "## 4 of 4 portfolios" in text and "Serving 64 rows" in text
    assert "|  | eager |\n| --- | --- |\n| separate | 2.0 |" in text
    assert "none: nobody knows" in text and "consolidated is merged, untied" in text and "a rehearsal" in text
    assert "## 4 of 4 portfolios" in text and "Serving 64 rows" in text
    assert "|  | eager | loka | inductor | loka over eager | inductor over eager |" in text
    assert "| separate | 3.0 | 2.0 | 4.0 | 1.50x | 0.75x |" in text
    report.plot(found, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
