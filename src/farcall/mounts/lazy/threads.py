"""Threads for what blocks, and the lease that keeps what they bring."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from farcall.content.lease import Lease
from farcall.content.store import Store

_THREADS = 64  # openings and reads that wait for a tier at the same time

_T = TypeVar("_T")


@dataclass
class _Held:
    lease: Lease
    users: int = 0
    is_old: bool = False


class Threads:
    """Work that blocks, in threads. What it adds to the store is kept by a lease until that is `renew`ed.

    A container's own lease keeps its tree, and so what arrives of it; this one keeps it while it is on its way.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="arrive")
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Do something in a thread."""
        return self._loop.run_in_executor(self._executor, work)

    def run_leased(self, work: Callable[[Lease], _T]) -> asyncio.Future[_T]:
        """Do something in a thread, with the lease."""

        def leased() -> _T:
            with self.lease() as lease:
                return work(lease)

        return self.run(leased)

    @contextmanager
    def lease(self) -> Generator[Lease]:
        """The lease. Raises what `Store.lease` raises."""
        with self._lock:
            held = self._held = self._held or _Held(self._store.lease("lazy"))
            held.users += 1
        try:
            yield held.lease
        finally:
            with self._lock:
                held.users -= 1
                is_over = held.is_old and held.users == 0
            if is_over:
                held.lease.close()

    def renew(self) -> None:
        """Who wants the lease from now on gets another one; this one ends when nobody uses it."""
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            held.is_old = True
            is_over = held.users == 0
        if is_over:
            held.lease.close()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
