"""`concurrent.futures.ProcessPoolExecutor`: two processes, started as this Python starts them by default."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench import processes
from bench.peers import Measurement, Result, run
from bench.peers.measurements import fan_out, there_and_back, warm_call
from bench.samples import median

NAME = "ProcessPoolExecutor"


def echo(value: Any) -> Any:
    return value


def first_line() -> float:
    return time.monotonic()


def process_id() -> int:
    return os.getpid()


def noop_map(pool: ProcessPoolExecutor) -> Iterator[Result]:
    for chunksize, count in ((1, 20_000), (64, 100_000)):
        list(pool.map(echo, range(640), chunksize=chunksize))

        def mapped(count: int, chunksize: int = chunksize) -> int:
            return sum(pool.map(echo, range(count), chunksize=chunksize))

        yield fan_out(f"{NAME}, chunksize {chunksize}", mapped, count)


def new_container(row: str, method: str) -> Iterator[Result]:
    """A new pool of one."""
    taken: list[float] = []
    for _ in range(5):
        begin = time.monotonic()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            taken.append(pool.submit(first_line).result() - begin)
    yield Result(row, f"{NAME}, {method}", 1e3 * median(taken), len(taken))


def idle_memory(pool: ProcessPoolExecutor) -> Iterator[Result]:
    yield Result("idle container", NAME, processes.memory([pool.submit(process_id).result()]).private, 1)


@contextmanager
def peer() -> Generator[Mapping[str, Measurement]]:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(echo, range(100)))

        def call(value: Any) -> Any:
            return pool.submit(echo, value).result()

        yield {
            "warm call": lambda: warm_call(NAME, partial(call, 1), 3000),
            "no-op map": partial(noop_map, pool),
            "new container, fork": partial(new_container, "new container, fork", "fork"),
            "new container, exec": partial(new_container, "new container, exec", "spawn"),
            "100 MB bytes": lambda: there_and_back("100 MB bytes", NAME, call),
            "100 MB array": lambda: there_and_back("100 MB array", NAME, call),
            "memory": partial(idle_memory, pool),
        }


if __name__ == "__main__":
    run(peer)
