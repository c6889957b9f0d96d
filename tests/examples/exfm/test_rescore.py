"""Scored again, rows say what DAS would have said with that delay, and the rest of them is untouched."""

import numpy as np
import pytest

from examples.exfm.das.rows import joined
from examples.exfm.das.service import Settings
from examples.exfm.errors import ExfmError
from examples.exfm.rescore import rescore
from examples.exfm.score import Plan, rows_of, score, standing
from examples.exfm.stream.log import Log, write
from examples.exfm.students import StudentSpec
from examples.exfm.train import train
from tests.examples.exfm.test_score import LONGER
from tests.examples.exfm.world import HOUR, TINY

SCORES = ("logit", "probability", "embedding", "version", "trained_until")


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    """By delay in hours, what DAS itself joins."""
    folder = tmp_path_factory.mktemp("works")
    write(folder / "log", LONGER.schema, LONGER.events())
    for delay in (0, 4):
        settings = Settings(batch=128, delay=delay * HOUR)
        plan = Plan(folder / str(delay), TINY, settings, every=6, period=2 * HOUR, keep=100)
        score(Log(folder / "log", chunk_rows=150, span=1), plan)
    return folder


def all_of(work):
    return joined([rows for _, rows in rows_of(work)])


@pytest.mark.parametrize("delay", [0, 4])
def test_it_is_what_das_joins_with_that_delay(works, tmp_path, delay):
    rescore(works / "0", tmp_path, delay * HOUR)
    found, wanted = all_of(tmp_path), all_of(works / str(delay))
    assert np.array_equal(found.id, wanted.id) and np.array_equal(found.scored, wanted.scored)
    assert np.array_equal(found.version, wanted.version) and len(set(found.version.tolist())) > 3
    for name in SCORES:
        assert np.allclose(getattr(found, name)[found.scored], getattr(wanted, name)[wanted.scored], atol=1e-3), name
    untouched = {name: value for name, value in wanted.arrays().items() if name not in (*SCORES, "scored_at")}
    assert all(np.array_equal(found.arrays()[name], value) for name, value in untouched.items())


def test_it_goes_on_where_it_stopped(works, tmp_path):
    calls = []

    def prepare(model):
        calls.append(model)
        return lambda ids, bag: tuple(each + 1 for each in model(ids, bag))

    rescore(works / "0", tmp_path, prepare=prepare)
    once, plain = all_of(tmp_path), all_of(works / "0")
    assert np.allclose(once.logit[once.scored], plain.logit[plain.scored] + 1, atol=1e-5) and calls
    last = max((tmp_path / "rows").iterdir())
    last.unlink()
    count = len(calls)
    rescore(works / "0", tmp_path, prepare=prepare)
    assert 0 < len(calls) - count < count
    again = all_of(tmp_path)
    assert all(np.array_equal(value, again.arrays()[name]) for name, value in once.arrays().items())


def test_another_delay_and_other_rows_go_to_another_folder(works, tmp_path):
    rescore(works / "0", tmp_path, 2 * HOUR)
    one = standing(tmp_path)
    assert one[1] and one[0] not in (standing(works / "0")[0], "")
    rescore(works / "0", tmp_path / "more", 3 * HOUR)
    assert standing(tmp_path / "more")[0] != one[0]
    with pytest.raises(ExfmError, match="scored again another way, or of other rows"):
        rescore(works / "0", tmp_path, 3 * HOUR)
    with pytest.raises(ExfmError, match="scored again another way, or of other rows"):
        rescore(works / "4", tmp_path, 2 * HOUR)
    spec = StudentSpec("s", "feed", "early", "none", batch=64)
    train(tmp_path, LONGER.schema, [spec], tmp_path / "out")
    with pytest.raises(ExfmError, match="learned from other rows"):
        train(tmp_path / "more", LONGER.schema, [spec], tmp_path / "out")
