"""A node of Ray's that goes with all that runs on it costs no row, no score and no bit."""

import threading
import time

import numpy as np
import pytest

from examples.exfm.das.rows import joined
from tests.examples.exfm.world import DRIFT, das, publish, through

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from examples.exfm.das.ray_scorers import OnRay  # noqa: E402

pytestmark = pytest.mark.slow
STORE = 80 * 2**20


@pytest.fixture
def cluster():
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def with_scorers():
    """Ids of the nodes alive that scorers may run on."""
    return {each["NodeID"] for each in ray.nodes() if each["Alive"] and "teacher" in each["Resources"]}


def test_a_node_that_dies_takes_nothing_with_it(cluster, tmp_path):
    """The first node has both scorers; it is killed while they score, and the second node takes what is left."""
    publish(tmp_path, [1, 2])
    chunks = list(DRIFT.events())
    here = joined(through(das(tmp_path, batch=32), chunks))
    third = len(chunks) // 3
    node = cluster.add_node(num_cpus=1, resources={"teacher": 2}, object_store_memory=STORE)
    scorers = OnRay(tmp_path, 2, retries=120, resources={"teacher": 1})
    service = das(tmp_path, scorers=scorers, batch=32)
    found = through(service, chunks[:third])
    assert joined(found).scored.any()
    first = with_scorers()
    cluster.add_node(num_cpus=1, resources={"teacher": 2}, object_store_memory=STORE)
    killer = threading.Thread(target=cluster.remove_node, args=(node,), kwargs={"allow_graceful": False})
    killer.start()
    found += through(service, chunks[third : 2 * third])
    killer.join()
    until = time.monotonic() + 120
    while first & with_scorers() and time.monotonic() < until:  # Ray notices after a while
        time.sleep(0.5)
    assert len(first) == len(with_scorers()) == 1 and first != with_scorers()
    found = joined([*found, *through(service, chunks[2 * third :])])
    assert all(np.array_equal(values, found.arrays()[name]) for name, values in here.arrays().items())
    scorers.close()
