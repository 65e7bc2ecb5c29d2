"""Celery with Redis: a Redis of its own with an append-only file, and for some measurements a worker of two processes.

Redis acknowledges what it has written to the file. With `appendfsync always` that is on the disk by then, as what
farcall acknowledges is; with `everysec` it is there a second later, and a power cut takes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import processes
from bench.peers import Measurement, Result, run
from bench.peers.flood import flood
from bench.peers.measurements import PENDING, single_spawns, spawned_noops

if TYPE_CHECKING:
    from redis import Redis

POLICIES = {"Celery, fsync every second": "everysec", "Celery, fsync always": "always"}
IN_BULK = 5_000
NOOPS = 5_000
SOCKET_VARIABLE = "BENCH_REDIS_SOCKET"  # read when celery_tasks is imported
UP_SECONDS = 60.0  # for Redis, or a worker, to answer


@contextmanager
def redis_server(folder: Path) -> Generator[Redis]:
    """Redis at a socket in `folder`, where all that it writes goes, too; the environment names the socket."""
    from redis import ConnectionError, Redis

    socket = folder / "redis.sock"
    options = {"port": 0, "unixsocket": socket, "dir": folder, "appendonly": "yes", "save": ""}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(["redis-server", *words])
    try:
        client = Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + UP_SECONDS
        while True:
            try:
                client.ping()
                break
            except ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        os.environ[SOCKET_VARIABLE] = str(socket)
        yield client
    finally:
        process.terminate()
        process.wait()


@contextmanager
def worker() -> Generator[None]:
    """A worker of two processes that has answered."""
    from bench.peers import celery_tasks

    words = ["--concurrency=2", "--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    process = subprocess.Popen([sys.executable, "-m", "celery", "-A", celery_tasks.__name__, "worker", *words])
    try:
        celery_tasks.echo.delay(0).get(timeout=UP_SECONDS)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def bulk() -> Generator[Callable[[int], object]]:
    """One message after another over one connection, each acknowledged; Celery has no other way."""
    from bench.peers.celery_tasks import app, unanswered

    with app.producer_pool.acquire(block=True) as producer:

        def send(count: int) -> None:
            for number in range(count):
                unanswered.apply_async((number,), producer=producer)

        yield send


class Measured:
    """What is measured with a Redis that is up, under either policy."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def _policies(self) -> Iterator[str]:
        """Each contender in turn, with an empty queue."""
        for contender, policy in POLICIES.items():
            self._redis.flushall()
            self._redis.config_set("appendfsync", policy)
            yield contender

    def spawning(self) -> Iterator[Result]:
        from bench.peers.celery_tasks import unanswered

        for contender in self._policies():
            yield from single_spawns(contender, lambda: unanswered.delay(1), lambda: flood(bulk, IN_BULK))

    def noops(self) -> Iterator[Result]:
        from celery.result import ResultSet

        from bench.peers.celery_tasks import echo

        def echoed(count: int) -> int:
            results: Any = ResultSet([echo.delay(number) for number in range(count)])
            return sum(results.join_native())

        for contender in self._policies():
            with worker():
                yield spawned_noops(contender, echoed, NOOPS)

    def pending(self) -> Iterator[Result]:
        self._redis.flushall()
        pid = int(self._redis.info()["process_id"])
        processes.forget_peak_memory(pid)
        with bulk() as send:
            send(PENDING)
        yield Result("100,000 pending, memory", "Celery's Redis", processes.peak_memory(pid), PENDING)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))
        measured = Measured(stack.enter_context(redis_server(folder)))
        yield {"spawning": measured.spawning, "spawned no-ops": measured.noops, "pending": measured.pending}


if __name__ == "__main__":
    run(peer)
