"""What is fetched before anybody asks for it: some at a time, and fewer while somebody waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from farcall.errors import CorruptedError, NotFoundError

_MOST = 8  # blobs on their way that nobody has asked for: what the line carries in the time of a round trip, and more
_MOST_QUEUED = 2048  # beyond which the oldest go, which were likely for the longest time without being asked for
_MOST_BESIDE = 4  # the same while somebody waits for another one

Begin = Callable[[], Awaitable[object]]  # has something on its way when it returns


class Ahead:
    """A queue of what is likely to be asked for. Where one fails that could be had, as places are away or the disk is
    full, all others are let go: each of them would only try, and wait, in vain. All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Begin, asyncio.Future[None]]] = deque()
        self._coming = 0
        self._waiting = 0

    def add(self, begin: Begin, *, is_first: bool = False) -> asyncio.Future[None]:
        """Call `begin` when there is room, before all others that wait for room if it `is_first`. What is returned is
        done when what began is over, or let go, whether or not it failed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._queue) >= _MOST_QUEUED:
            _set(self._queue.popleft()[1])
        if is_first:
            self._queue.appendleft((begin, done))
        else:
            self._queue.append((begin, done))
        self._fill()
        return done

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Meanwhile somebody waits for something else."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._fill()

    def _fill(self) -> None:
        while self._queue and self._coming < (_MOST_BESIDE if self._waiting else _MOST):
            begin, done = self._queue.popleft()
            self._coming += 1
            coming = asyncio.ensure_future(begin())
            coming.add_done_callback(lambda coming, done=done: self._came(coming, done))

    def _came(self, coming: asyncio.Future[object], done: asyncio.Future[None]) -> None:
        self._coming -= 1
        error = None if coming.cancelled() else coming.exception()  # of which who opens it hears
        if error is not None and not isinstance(error, NotFoundError | CorruptedError):
            while self._queue:
                _set(self._queue.popleft()[1])
        _set(done)
        self._fill()


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
