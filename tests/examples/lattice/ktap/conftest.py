from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    pytest.importorskip("redis")
    from tests.examples.lattice.ktap.servers import Server

    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.thaw()
    server.kill()
