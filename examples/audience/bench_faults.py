"""Counters, nodes and servers are killed while queries go on: is any answer wrong, does a client see an error?

    python -m examples.audience.bench_faults [--kills 100] [--rate 200] [--seconds-between 2] [--json FILE]

A Ray cluster of several nodes on this machine (ray.cluster_utils) holds the counters; two servers ask them; clients
ask the servers at a fixed rate, whether or not answers come (so that waiting counts), and go to the other server when
one is gone. Killed are, in turn: counters (their process), nodes (with all their counters; a new one joins), and
servers (SIGKILL; started again). Every answer is held against the whole population.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from examples.audience import data
from examples.audience.bench_accuracy import queries
from examples.audience.client import Client
from examples.audience.reach import store
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns, encoded
from examples.audience.reach.query import to_json

SLOW = 0.1
"""Seconds from which an answer is slower than usual."""
TURN = ("counter", "counter", "counter", "counter", "server", "counter", "counter", "counter", "node", "server")
"""What is killed, over and over."""
NAME = "faults"


@dataclass(frozen=True)
class Answered:
    """at: when it was due, seconds on the monotonic clock; seconds: how long it took from then."""

    at: float
    seconds: float
    inside: bool
    whole: bool
    error: str | None = None


@dataclass(frozen=True)
class Kill:
    at: float
    what: str


@dataclass(eq=False)
class Servers:
    """Two servers as processes, and the cluster's counters behind them."""

    folder: Path
    address: str
    counters: int
    ports: list[int] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, number: int) -> None:
        command = [sys.executable, "-m", "examples.audience", "serve", "--sample", str(self.folder)]
        command += ["--counters", str(self.counters), "--ray", self.address, "--name", NAME]
        made = subprocess.Popen([*command, "--port", str(self.ports[number])], env=os.environ)
        if number < len(self.processes):
            self.processes[number] = made
        else:
            self.processes.append(made)

    def ready(self, number: int, seconds: float = 120.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if httpx.get(f"http://127.0.0.1:{self.ports[number]}/readyz", timeout=2.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError(f"server {number} was not ready within {seconds:g} s")

    def kill(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGKILL)
        self.processes[number].wait()


def asked_of(folder: Path, rows: int, n: int, count: int, shards: int) -> list[tuple[Any, int]]:
    """A sample in folder / 's', and queries with how many rows match."""
    network = data.network("insurance")
    paths = network.write(folder / "population", rows)
    columns = Columns(tuple(network.values))
    manifest = build(paths, columns, folder / "s", n, shards=shards)
    codes = encoded(pa.concat_tables([pq.read_table(path) for path in paths]), manifest.schema)
    return [(to_json(each.query), int(each.there.sum())) for each in queries(codes, manifest.schema, count, 7)]


def load(
    addresses: list[str], asked: list[tuple[Any, int]], rate: float, stop: threading.Event, threads: int
) -> list[Answered]:
    """Asks at the rate until told to stop; a list that grows."""
    found: list[Answered] = []
    began = time.monotonic()

    def run(number: int) -> None:
        turn = number
        with Client(addresses if number % 2 else addresses[::-1], seconds=30.0) as client:
            while not stop.is_set():
                due = began + turn / rate
                time.sleep(max(0.0, due - time.monotonic()))
                query, truth = asked[turn % len(asked)]
                try:
                    answer = client.reach(query)
                    inside = answer["low"] - 1e-6 <= truth <= answer["high"] + 1e-6
                    whole, error = answer["answered"] == 1, None
                except (httpx.HTTPError, ValueError) as failed:
                    inside, whole, error = False, False, repr(failed)
                found.append(Answered(due, time.monotonic() - due, inside, whole, error))
                turn += threads

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    threading.Thread(target=lambda: [worker.join() for worker in workers], daemon=True).start()
    return found


def killed(cluster: Cluster, nodes: list[Any], servers: Servers, kills: int, pause: float, seed: int) -> list[Kill]:
    """Kills in turn, each when what was killed before of its kind is back."""
    rng, done = np.random.default_rng(seed), []
    manifest = store.load(servers.folder)
    names = [f"{NAME}-{manifest.identity}-{servers.counters}-{i}" for i in range(servers.counters)]
    restarting: int | None = None
    for turn in range(kills):
        what = TURN[turn % len(TURN)]
        if what == "server":
            if restarting is not None:
                servers.ready(restarting)
            number = 0 if restarting is None else 1 - restarting
            servers.ready(number)
            done.append(Kill(time.monotonic(), what))
            servers.kill(number)
            servers.start(number)
            restarting = number
        elif what == "node":
            node = nodes.pop(int(rng.integers(len(nodes))))
            done.append(Kill(time.monotonic(), what))
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20))
        else:
            actor = ray.get_actor(names[int(rng.integers(len(names)))], namespace="reach")
            done.append(Kill(time.monotonic(), what))
            ray.kill(actor, no_restart=False)
        time.sleep(pause)
    return done


def summed(answers: list[Answered], kills: list[Kill], rate: float) -> dict[str, Any]:
    seconds = np.array([each.seconds for each in answers])
    errors = [each.error for each in answers if each.error]
    at = np.array([each.at for each in answers])
    partial = np.array([not each.whole for each in answers])
    slow = seconds > SLOW
    after: dict[str, list[tuple[float, int]]] = {}
    for kill, following in zip(kills, [*(each.at for each in kills[1:]), np.inf], strict=True):
        own = (at >= kill.at - SLOW) & (at < following)
        last = at[own & (partial | slow)].max(initial=kill.at)
        after.setdefault(kill.what, []).append((last - kill.at, int((own & slow).sum())))
    return {
        "answers": len(answers),
        "per second": len(answers) / max(1e-9, float(np.ptp(at))),
        "offered per second": rate,
        "kills": {what: len(own) for what, own in after.items()},
        "errors": len(errors),
        "first errors": errors[:5],
        "intervals hold": float(np.mean([each.inside for each in answers if not each.error])),
        "intervals of partial answers hold": float(np.mean([e.inside for e in answers if not e.whole and not e.error]))
        if partial.any()
        else None,
        "partial answers": int(partial.sum()),
        "slower than 100 ms": int(slow.sum()),
        "seconds": {q: float(np.quantile(seconds, q)) for q in (0.5, 0.9, 0.99, 0.999, 1.0)},
        "seconds until whole and quick again": {
            what: {"median": float(np.median([s for s, _ in own])), "most": max(s for s, _ in own)}
            for what, own in after.items()
        },
        "slow answers a kill": {what: float(np.mean([n for _, n in own])) for what, own in after.items()},
    }


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200.0, help="queries a second")
    parser.add_argument("--seconds-between", type=float, default=2.0, help="kills")
    parser.add_argument("--nodes", type=int, default=2, help="beside the head")
    parser.add_argument("--counters", type=int, default=4)
    parser.add_argument("--population-rows", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as ray_counters.started has it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = asked_of(folder, options.population_rows, options.rows, options.queries, 2 * options.counters)
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        servers = Servers(folder / "s", cluster.address, options.counters, [free_port(), free_port()])
        stop = threading.Event()
        try:
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(options.nodes)]
            ray.init(cluster.address, log_to_driver=False, namespace="reach")
            for number in range(2):
                servers.start(number)
                servers.ready(number)
            addresses = [f"http://127.0.0.1:{port}" for port in servers.ports]
            answers = load(addresses, asked, options.rate, stop, threads=32)
            time.sleep(5)
            kills = killed(cluster, nodes, servers, options.kills, options.seconds_between, options.seed)
            time.sleep(15)
            stop.set()
            time.sleep(2)
            found = summed(list(answers), kills, options.rate)
        finally:
            stop.set()
            for process in servers.processes:
                process.kill()
            ray.shutdown()
            cluster.shutdown()
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
