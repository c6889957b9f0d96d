"""Counters as Ray actors answer as one process does, and go on while they are killed."""

import os
import signal
import time

import numpy as np
import pytest

from examples.audience.reach.build import build, refresh
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question, Unavailable
from examples.audience.reach.query import Everybody
from examples.audience.reach.schema import AudienceError
from tests.examples.audience.reach.population import COLUMNS, columns_of, files, matches
from tests.examples.audience.reach.test_estimator import questions

ray = pytest.importorskip("ray")
from examples.audience.reach.ray_counters import OnRay, on_ray  # noqa: E402

KILLS = 4


@pytest.fixture(scope="module")
def sample(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    paths = files(folder / "population", days=2, rows=4000)
    build(paths, COLUMNS, folder / "s", 1000, each=on_ray)
    build(paths, COLUMNS, folder / "here", 1000)
    return folder, columns_of(paths)


def test_tasks_and_actors_say_what_one_process_says(sample):
    folder, _ = sample
    here, there = Estimator(Local(folder / "here")), Estimator(OnRay(folder / "s", 4, late=30), seconds=30)
    for query in questions(0, 25):
        assert there.reach(Question(query)) == here.reach(Question(query))
    there.counters.close()


def eventually(estimator, query=None, seconds=120):
    """The first answer. However long a busy machine takes to start processes again, one comes."""
    until = time.monotonic() + seconds
    while True:
        try:
            return estimator.reach(Question(query or Everybody()))
        except Unavailable:
            assert time.monotonic() < until, f"no counter answered within {seconds} s"


def test_killed_counters_come_back_and_no_answer_is_wrong(sample):
    """Queries go on while counters die. Every answer is unbiased for what answered, within its interval at its rate."""
    folder, columns = sample
    counters = OnRay(folder / "s", 4)
    estimator = Estimator(counters, seconds=2.0)
    eventually(estimator)
    asked = [query for query in questions(1, 200) if matches(query, columns).sum() >= 100]
    rng, hits = np.random.default_rng(0), []
    for kill in range(KILLS):
        ray.kill(counters.actors[rng.integers(4)], no_restart=False)
        for query in asked[8 * kill : 8 * kill + 8]:
            found = eventually(estimator, query)
            hits.append(found.low <= matches(query, columns).sum() <= found.high)
    assert np.mean(hits) > 0.85
    until = time.monotonic() + 120
    while eventually(estimator).answered < 1:
        assert time.monotonic() < until, "the counters did not come back within two minutes"
    counters.close()


def test_a_counter_that_hangs_is_waited_for_once_and_not_long(sample):
    """A stopped process is what a machine that is gone looks like at first: nothing comes back."""
    folder, _ = sample
    counters = OnRay(folder / "s", 2, late=1.0)
    estimator = Estimator(counters, seconds=60)
    assert eventually(estimator).answered == 1
    pid = ray.get(counters.actors[0].__ray_call__.remote(lambda counter: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        seconds = []
        for _ in range(4):
            began = time.monotonic()
            assert estimator.reach(Question(Everybody())).answered < 1
            seconds.append(time.monotonic() - began)
        assert 60 > seconds[0] >= 1.0 > np.median(seconds[1:]), seconds
    finally:
        os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 120
    while eventually(estimator).answered < 1:
        assert time.monotonic() < until, "the counter was not asked again within two minutes"
    counters.close()


def test_counters_with_a_name_are_shared_and_outlive_who_made_them(sample):
    folder, columns = sample
    one, other = (OnRay(folder / "s", 2, name="shared") for _ in range(2))
    assert [each._actor_id for each in one.actors] == [each._actor_id for each in other.actors]
    del one
    reach = Estimator(other, seconds=30).reach(Question(Everybody()))
    assert reach.value == pytest.approx(len(columns["age"]))
    other.close()


def test_a_corrupt_shard_is_lost_alone(sample, tmp_path):
    folder, _ = sample
    build(sorted((folder / "population").glob("*.parquet")), COLUMNS, tmp_path / "s", 200)
    (tmp_path / "s" / "shard-002.parquet").write_bytes(b"no")
    counters = OnRay(tmp_path / "s", 2, late=30)
    assert list(counters.lost) == ["shard-002.parquet"]
    found = Estimator(counters, seconds=30).reach(Question(Everybody()))
    assert found.answered == pytest.approx(0.75, abs=0.02) and found.value == pytest.approx(8000)
    counters.close()


def test_more_counters_than_shards_are_an_error(sample):
    with pytest.raises(AudienceError, match="1 to 4 counters, not 9"):
        OnRay(sample[0] / "s", 9)


def test_a_counter_that_starts_again_after_a_refresh_does_not_mix_two_samples(sample, tmp_path):
    """Everybody was 11,000 of 2,000 yesterday and 20,000 today. What a counter cannot get any more is not answered."""
    paths = sorted((sample[0] / "population").glob("*.parquet"))
    build(paths[:1], COLUMNS, tmp_path / "s", 400)
    counters = OnRay(tmp_path / "s", 2, late=30)
    estimator = Estimator(counters, seconds=5)
    question = Question(Everybody(), "total", "click")
    before = eventually(estimator)
    assert (before.value, before.answered) == (4000, 1)
    refresh(tmp_path / "s", paths)
    ray.kill(counters.actors[0], no_restart=False)
    until = time.monotonic() + 120
    while not counters.lost:  # until it has started again and found another sample
        assert eventually(estimator).value == 4000 and time.monotonic() < until
    alone, found = estimator.alone(Question(Everybody())), estimator.reach(question)
    assert (alone.value, alone.answered) == (pytest.approx(4000), pytest.approx(0.5, abs=0.02))
    assert found.answered < 1 and found.value < estimator.manifest.measures["click"].powers[0] * 2
    assert set(counters.lost) == {"shard-000.parquet", "shard-002.parquet"}
    assert all("holds another sample now" in why for why in counters.lost.values())
    counters.close()
    anew = OnRay(tmp_path / "s", 2, late=30)
    assert eventually(Estimator(anew, seconds=5)).value == 8000
    anew.close()
