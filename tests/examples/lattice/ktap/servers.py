"""A real Redis server of the test's own, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

MISSING = (
    "no redis-server is installed, which tests of the store on Redis start. On Debian: apt-get install redis-server; "
    "where CI=true this is a failure"
)


class Server:
    """`redis-server` on a free port of this machine, in memory alone."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._binary = shutil.which("redis-server")
        if self._binary is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder, self._options = folder, options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        given = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *self._options]
        self._process = subprocess.Popen(
            [self._binary, *given], cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        client, until = redis.Redis(port=self.port, socket_timeout=1), time.monotonic() + 60
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        client.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Alive and connected, but answering nobody."""
        self._process.send_signal(19)

    def thaw(self) -> None:
        self._process.send_signal(18)
