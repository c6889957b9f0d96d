"""Scorers as Ray actors give what one process gives, to the bit, while they are killed."""

import threading
import time

import numpy as np
import pytest

from examples.exfm.das.rows import joined
from tests.examples.exfm.world import DRIFT, das, publish, through

ray = pytest.importorskip("ray")
from examples.exfm.das.ray_scorers import OnRay  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cluster):
    folder = tmp_path_factory.mktemp("snapshots")
    publish(folder, [1, 2])
    return folder


def same(one, other):
    return all(np.array_equal(values, other.arrays()[name]) for name, values in one.arrays().items())


def test_actors_score_as_this_process_does(folder):
    chunks = list(DRIFT.events())
    here = joined(through(das(folder, batch=32), chunks))
    scorers = OnRay(folder, 2)
    service = das(folder, scorers=scorers, batch=32)
    assert same(here, joined(through(service, chunks)))
    assert service.counters["teacher_calls"] == 480
    scorers.close()


def test_killed_actors_cost_nothing_but_time(folder):
    chunks = list(DRIFT.events())
    here = joined(through(das(folder, batch=32), chunks))
    scorers = OnRay(folder, 2, retries=60)
    killed, stop = [0], threading.Event()

    def kill():
        rng = np.random.default_rng(0)
        while not stop.wait(0.5) and killed[0] < 6:
            ray.kill(scorers.actors[rng.integers(2)], no_restart=False)
            killed[0] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    service = das(folder, scorers=scorers, batch=32)
    found = []
    for events in chunks:
        service.push(events)
        found.append(service.release())
        time.sleep(0.1)
    stop.set()
    killer.join()
    assert killed[0] >= 4 and same(here, joined(found))
    scorers.close()


def test_an_actor_that_stays_dead_costs_scores_and_not_rows(folder):
    chunks = list(DRIFT.events())
    scorers = OnRay(folder, 1, retries=1)
    ray.kill(scorers.actors[0], no_restart=True)
    service = das(folder, scorers=scorers, batch=32)
    rows = joined(through(service, chunks))
    assert rows.first.sum() == 480 and not rows.scored.any() and service.counters["scorer_failed"] == 480
