"""Work that several threads do side by side: reading, writing and hashing all let other threads run."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

THREADS = 4  # at most; never more than there are processors

_T = TypeVar("_T")


def side_by_side(work: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Call `work` with each item. The first exception ends it, and is raised when the calls under way have ended."""
    remaining = iter(items)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        for item in _shared(remaining, lock):
            if failures:
                return
            try:
                work(item)
            except BaseException as error:
                failures.append(error)
                return

    threads = [
        threading.Thread(target=run, name="farcall-content", daemon=True)
        for _ in range(min(THREADS, len(os.sched_getaffinity(0))) - 1)
    ]
    for thread in threads:
        thread.start()
    try:
        run()
    finally:
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _shared(items: Iterator[_T], lock: threading.Lock) -> Iterator[_T]:
    while True:
        with lock:
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
