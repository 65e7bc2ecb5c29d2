"""farcall with all its containers on two workers that have joined over TLS, on loopback."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import sleep

import farcall
from bench.peers import Measurement, Result, run
from bench.peers.bare import NAME as BARE
from bench.peers.bare import chain
from bench.samples import median, timed
from farcall.sdk import client
from tests.cluster.machines import Cluster, WorkerMachine, cluster

NAME = "farcall"
CALLS = 2000
INPUTS = 40_000
KILLED_INPUTS = 10_000
HALF = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 // 2 + 1  # MiB: one container on each worker

app = farcall.App("bench-workers")


@app.function(serialized=True, max_containers=1)
def echo(x: int) -> int:
    return x


@app.function(serialized=True, max_containers=2, memory=HALF)
def noop(x: int) -> int:
    return x


@app.function(serialized=True, max_containers=2, memory=HALF)
def brief(x: int) -> int:
    sleep(0.001)
    return x


def far_call() -> Iterator[Result]:
    """One call after the other."""
    with app.run():
        timed(lambda: echo.remote(1), CALLS)  # the other worker still gets ready meanwhile
        yield Result("warm call, worker", NAME, 1e6 * median(timed(lambda: echo.remote(1), CALLS)), CALLS)
    with chain() as call:
        timed(call, CALLS)
        yield Result("warm call, worker", BARE, 1e6 * median(timed(call, CALLS)), CALLS)


def far_map() -> Iterator[Result]:
    """A map over a container on each."""
    with app.run():
        assert sum(noop.map(range(2000))) == sum(range(2000))
        [took] = timed(lambda: list(noop.map(range(INPUTS))), 1)
        yield Result("no-op map, workers", NAME, INPUTS / took, INPUTS)


def killed_worker(made: Cluster) -> Iterator[Result]:
    """A map, undisturbed, and one in the middle of which a worker is killed."""
    with app.run():
        while not all(worker.cgroups() for worker in made.workers):
            assert sum(brief.map(range(2000))) == sum(range(2000))
        [undisturbed] = timed(lambda: list(brief.map(range(KILLED_INPUTS))), 1)
        began = time.monotonic()
        found: list[int] = []
        for x in brief.map(range(KILLED_INPUTS), order_outputs=False):
            found.append(x)
            if len(found) == KILLED_INPUTS // 2:
                _kill(made.workers[0])
        took = time.monotonic() - began
        assert sorted(found) == list(range(KILLED_INPUTS))
        made.workers[0].join()
        yield Result("worker killed in a map", NAME, took - undisturbed, 1)


def _kill(worker: WorkerMachine) -> None:
    containers = worker.cgroups()
    worker.kill()
    for cgroup in containers:
        with suppress(OSError):  # its launcher was quicker
            for pid in Path(cgroup, "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    """A server and its two workers."""
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as folder:
        root = Path(folder)
        with cluster(root, root / "shared", has_lines=False) as made:
            os.environ |= made.server.environment
            try:
                yield {"far call": far_call, "far map": far_map, "killed worker": partial(killed_worker, made)}
            finally:
                client.current().close()


if __name__ == "__main__":
    run(peer)
