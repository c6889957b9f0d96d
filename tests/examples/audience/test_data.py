"""Bayesian networks: read from their format, drawn as their tables say."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.audience.data import network, parsed
from examples.audience.reach.schema import AudienceError

RAIN = """
network unknown { }
variable grass { type discrete [ 2 ] { wet, dry }; }
variable rain { type discrete [ 2 ] { yes, no }; }
variable sprinkler { type discrete [ 2 ] { on, off }; }
probability ( grass | rain, sprinkler ) {
  (yes, on) 0.99, 0.01; (yes, off) 0.8, 0.2; (no, on) 0.9, 0.1; (no, off) 0.0, 1.0;
}
probability ( rain ) { table 0.2, 0.8; }
probability ( sprinkler | rain ) { (yes) 0.01, 0.99; (no) 0.4, 0.6; }
"""


def test_a_network_is_drawn_as_its_tables_say(tmp_path):
    found = parsed("rain", RAIN)
    assert list(found.tables) == ["rain", "sprinkler", "grass"] and found.parents["grass"] == ["rain", "sprinkler"]
    rows = found.draw(200_000, 0)
    assert (rows["rain"] == 0).mean() == pytest.approx(0.2, abs=0.005)
    wet = 0.2 * (0.01 * 0.99 + 0.99 * 0.8) + 0.8 * 0.4 * 0.9
    assert (rows["grass"] == 0).mean() == pytest.approx(wet, abs=0.005)
    assert not ((rows["rain"] == 1) & (rows["sprinkler"] == 1) & (rows["grass"] == 0)).any()
    paths = found.write(tmp_path, 2500, chunk=1000)
    assert [len(pq.read_table(path)) for path in paths] == [1000, 1000, 500]
    assert set(np.unique(pq.read_table(paths[0])["rain"].to_numpy())) == {"yes", "no"}


def test_a_network_in_a_circle_is_an_error():
    circle = RAIN.replace(
        "probability ( rain ) { table 0.2, 0.8; }", "probability ( rain | grass ) { (wet) 1, 0; (dry) 0, 1; }"
    )
    with pytest.raises(AudienceError, match="circle"):
        parsed("circle", circle)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AudienceError, match="pip install --no-deps pgmpy"):
        network("alarm")
