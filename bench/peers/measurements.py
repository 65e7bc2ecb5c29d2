"""The measurements that are the same for each peer but for the call they make."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from bench.peers import Result
from bench.peers.flood import spaced
from bench.samples import median, percentile, timed

LARGE = 100_000_000  # bytes
WARM_UP = 200  # calls
PENDING = 100_000  # spawned inputs


def warm_call(contender: str, call: Callable[[], object], count: int) -> Iterator[Result]:
    """One call after the other: the median, and the time that one call in a hundred exceeds."""
    timed(call, WARM_UP)
    yield from call_times(contender, timed(call, count))


def call_times(contender: str, taken: list[float]) -> Iterator[Result]:
    """The rows of calls that took so many seconds each."""
    yield Result("warm call", contender, 1e6 * median(taken), len(taken))
    yield Result("warm call, p99", contender, 1e6 * percentile(taken, 99), len(taken))


def fan_out(contender: str, run: Callable[[int], int], count: int) -> Result:
    """`run` has this many numbers, from 0, echoed and returns their sum."""
    return _echoed("no-op map", contender, run, count)


def spawned_noops(contender: str, run: Callable[[int], int], count: int) -> Result:
    """The same, of calls that are spawned."""
    return _echoed("spawned no-ops", contender, run, count)


def _echoed(row: str, contender: str, run: Callable[[int], int], count: int) -> Result:
    begin = time.perf_counter()
    total = run(count)
    rate = count / (time.perf_counter() - begin)
    if total != count * (count - 1) // 2:
        raise AssertionError(f"{contender} returned other results than it was to")
    return Result(row, contender, rate, count)


def single_spawns(
    contender: str, spawn: Callable[[], object], flood: Callable[[], AbstractContextManager[list[float]]]
) -> Iterator[Result]:
    """What single spawns take, alone and while another process spawns in bulk, and at which rate that did."""
    timed(spawn, WARM_UP)
    alone = spaced(spawn)
    with flood() as rates:
        beside = spaced(spawn)
    for taken, when in ((alone, ""), (beside, " beside bulk")):
        yield Result(f"single spawn{when}", contender, 1e3 * median(taken), len(taken))
        yield Result(f"single spawn{when}, p99", contender, 1e3 * percentile(taken, 99), len(taken))
    if not rates:
        raise AssertionError("single spawns were measured beside nothing: the bulk was not done once")
    yield Result("spawn in bulk", contender, median(rates), len(rates))


def there_and_back(row: str, contender: str, echo: Callable[[Any], Any]) -> Iterator[Result]:
    """`100 MB bytes` or `100 MB array`: a value sent and returned, once, and then the median of three."""
    value: Any = os.urandom(LARGE)
    if row == "100 MB array":
        import numpy

        value = numpy.frombuffer(value, dtype=numpy.uint8).copy()
    echo(value[:1000])  # the type is known there, its module imported
    for kind, count in ((f"{row}, first", 1), (row, 3)):
        taken: list[float] = []
        for _ in range(count):
            begin = time.perf_counter()
            returned = echo(value)
            taken.append(time.perf_counter() - begin)
            if returned is value or type(returned) is not type(value) or memoryview(returned) != memoryview(value):
                raise AssertionError("what came back is not what was sent")
            del returned
        yield Result(kind, contender, 1e3 * median(taken), count)
