import json

import pytest

from examples.exfm import bench_scoring
from examples.exfm.das.lowered import HOW


@pytest.mark.slow
def test_it_rehearses(tmp_path, capsys, fresh_dynamo):
    found = bench_scoring.main(["--work", str(tmp_path), "--quick", "--json", str(tmp_path / "found.json")])
    assert set(found["speed"]) == set(HOW) and found["speed"]["eager"]["loss_rise"] == pytest.approx(0, abs=1e-12)
    assert len(found["students"]) == 3 * 2 and len(found["checks"]) >= 2
    assert json.loads((tmp_path / "found.json").read_text())["teacher"] == "tiny"
    assert "rows/s" in capsys.readouterr().out
