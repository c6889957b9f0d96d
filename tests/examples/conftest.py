"""Shared by the examples' tests that run on Ray."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for the tests of one file."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_worker_niceness", "0")  # its processes wait no longer than the test does
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20):
        yield
