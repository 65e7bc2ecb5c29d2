"""Ray: a cluster of its own on this machine, for two processors, without dashboard and usage reports."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported

import ray

from bench import processes
from bench.peers import Measurement, Result, run
from bench.peers.measurements import fan_out, there_and_back, warm_call
from bench.samples import median, timed

TASK, ACTOR = "Ray task", "Ray actor"
OBJECT_STORE = 700_000_000  # bytes: 100 MB there, 100 MB back, and what is not yet freed of the last time
NEW_WORKERS = 3
FAN_OUT = 5_000


def _echo(value: Any) -> Any:
    return value


class _Actor:
    def echo(self, value: Any) -> Any:
        return value

    def first_line(self) -> tuple[int, float]:
        return os.getpid(), time.monotonic()


class Cluster:
    """What is measured in a cluster that is up."""

    def __init__(self) -> None:
        self.echo: Any = ray.remote(_echo)
        self.actor_class: Any = ray.remote(_Actor)
        ray.get([self.echo.remote(i) for i in range(100)])

    def call_task(self, value: Any) -> Any:
        return ray.get(self.echo.remote(value))

    @contextmanager
    def actors(self, count: int) -> Generator[list[Any]]:
        """Actors that answer; they need no processor of their own, so that tasks go on beside them."""
        made = [self.actor_class.options(num_cpus=0).remote() for _ in range(count)]
        try:
            ray.get([actor.echo.remote(0) for actor in made])
            yield made
        finally:
            for actor in made:
                ray.kill(actor)

    def warm_call(self) -> Iterator[Result]:
        yield from warm_call(TASK, lambda: self.call_task(1), 500)
        with self.actors(1) as (actor,):
            yield from warm_call(ACTOR, lambda: ray.get(actor.echo.remote(1)), 1000)

    def noop_map(self) -> Iterator[Result]:
        def tasks(count: int) -> int:
            return sum(ray.get([self.echo.remote(i) for i in range(count)]))

        tasks(500)
        yield fan_out(TASK, tasks, FAN_OUT)
        with self.actors(2) as pair:

            def calls(count: int) -> int:
                return sum(ray.get([pair[i % 2].echo.remote(i) for i in range(count)]))

            calls(500)
            yield fan_out(ACTOR, calls, FAN_OUT)

    def new_container(self) -> Iterator[Result]:
        """New actors. One that Ray puts into a process it had ready does not count: that is no new process."""
        taken: list[float] = []
        kept: list[Any] = []
        try:
            for _ in range(3 * NEW_WORKERS):
                born, begin = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
                kept.append(self.actor_class.options(num_cpus=0).remote())
                pid, first_line = ray.get(kept[-1].first_line.remote())
                if processes.started_at(pid) > born - 0.02:
                    taken.append(first_line - begin)
                    if len(taken) == NEW_WORKERS:
                        break
        finally:
            for actor in kept:
                ray.kill(actor)
        if not taken:
            raise RuntimeError("Ray started no new worker process")
        yield Result("new container, exec", ACTOR, 1e3 * median(taken), len(taken))

    def memory(self) -> Iterator[Result]:
        with self.actors(1) as (actor,):
            pid, _ = ray.get(actor.first_line.remote())
            yield Result("idle container", ACTOR, processes.memory([pid]).private, 1)
            # Workers, busy or not, are children of the node's daemon: what is left are the services.
            workers = [pid for pid in processes.descendants(os.getpid()) if processes.title(pid).startswith("ray::")]
            services = set(processes.descendants(os.getpid())) - set(workers)
            used = processes.memory(services)
            yield Result("server memory, private", "Ray's services", used.private, len(services))
            yield Result("server memory, resident", "Ray's services", used.resident, len(services))


def import_time() -> Iterator[Result]:
    import subprocess

    def run_program(program: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    bare, imported = timed(run_program("pass"), 2), timed(run_program("import ray"), 2)
    yield Result("import farcall", "Ray (import ray)", 1e3 * (median(imported) - median(bare)), 2)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    try:
        cluster = Cluster()
        yield {
            "warm call": cluster.warm_call,
            "no-op map": cluster.noop_map,
            "new container, exec": cluster.new_container,
            "100 MB bytes": lambda: there_and_back("100 MB bytes", TASK, cluster.call_task),
            "100 MB array": lambda: there_and_back("100 MB array", TASK, cluster.call_task),
            "import": import_time,
            "memory": cluster.memory,
        }
    finally:
        ray.shutdown()


if __name__ == "__main__":
    run(peer)
