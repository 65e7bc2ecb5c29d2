"""Another process that spawns in bulk, while this one measures what a single spawn takes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from bench.samples import timed

BULK = 100_000  # inputs, at most, in one go
SINGLES, PAUSE_SECONDS = 1_000, 0.005
END_SECONDS = 60.0

# Entered in the other process, by its name: gives what spawns so many, and returns when all are acknowledged.
Bulk = Callable[[], AbstractContextManager[Callable[[int], object]]]


def spaced(spawn: Callable[[], object]) -> list[float]:
    """Seconds that single spawns take, one after the other with a pause after each."""
    taken: list[float] = []
    for _ in range(SINGLES):
        taken += timed(spawn, 1)
        time.sleep(PAUSE_SECONDS)
    return taken


@contextmanager
def flood(bulk: Bulk, count: int) -> Generator[list[float]]:
    """Spawns `count` inputs over and over while the block runs. The list has how many a second that were, of each time
    but the last, once the block is over."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_spawn_on, args=(bulk, count, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()  # the first are there
        rates: list[float] = []
        yield rates
        ours.send(None)
        rates += ours.recv()
    finally:
        ours.close()
        process.join(END_SECONDS)
        process.kill()
        process.join()


def _spawn_on(bulk: Bulk, count: int, parent: Connection[Any, Any]) -> None:
    rates: list[float] = []
    with bulk() as spawn:
        spawn(count)
        parent.send(None)
        while not parent.poll():
            begin = time.perf_counter()
            spawn(count)
            rates.append(count / (time.perf_counter() - begin))
        parent.send(rates)
