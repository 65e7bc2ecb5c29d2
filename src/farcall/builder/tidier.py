"""When the content store is tidied: after builds, and when enough of what it holds is of no use to anybody."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.builder.job import run_job
from farcall.builder.requests import Tidy

if TYPE_CHECKING:
    from farcall.content.lease import Lease
    from farcall.content.store import Store

DEAD_SHARE = 0.02  # of the disk, that may be taken by what nobody keeps
DEAD_BYTES = 64 * 2**20  # the same, at most
PAUSE = 20  # times as long as the last collection took, before the next: what it costs is bounded


class Tidier:
    """Tidies one store, one run at a time, by jobs beside the server. All methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        where: Callable[[Lease], tuple[str, str, int]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`where` is what a job needs to know (`StepContainers.where`); `now` gives seconds."""
        self._store = store
        self._where = where
        self._now = now
        self._not_before = now()
        self._one = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._log = logging.getLogger("farcall.builder")

    @property
    def allowance(self) -> int:
        """Bytes that may be dead before they are collected."""
        return min(DEAD_BYTES, int(shutil.disk_usage(self._store.root).total * DEAD_SHARE))

    async def tidy(self) -> None:
        """Tidies; where it cannot be done the log says why. All that ask while one run is going on have the next one
        together."""
        if self._is_closed:
            return
        if self._next is None:
            self._next = self._begin(self._tidy())
        await asyncio.shield(self._next)

    def check(self) -> None:
        """Something was let go of: tidies, soon, when that is worth it."""
        if self._waiting is None and not self._is_closed and self._store.dead.get() > self.allowance:
            self._waiting = self._begin(self._tidy_soon())

    async def settle(self) -> None:
        """Returns when nothing goes on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends what goes on; nothing begins any more."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tidy_soon(self) -> None:
        try:
            await asyncio.sleep(max(0.0, self._not_before - self._now()))
            await self.tidy()
        finally:
            self._waiting = None

    async def _tidy(self) -> None:
        async with self._one:
            self._next = None
            began = self._now()
            try:
                with self._store.lease("tidy") as lease:
                    await run_job(Tidy(*self._where(lease)), int)
            except errors.FarcallError as error:
                self._log.warning("what nobody keeps was not collected: %s", error)
            finally:
                self._not_before = self._now() + PAUSE * (self._now() - began)
