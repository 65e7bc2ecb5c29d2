"""Work that several builds want at once is done once, and all of them hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")

Say = Callable[[str], None]

_HISTORY = 1000  # lines that a build which joins late is shown


class _Running(Generic[R]):
    """One piece of work while it is being done."""

    def __init__(self) -> None:
        self.listeners: list[Say] = []
        self.history: list[str] = []
        self.task: asyncio.Task[R] | None = None

    def say(self, line: str) -> None:
        self.history.append(line)
        del self.history[:-_HISTORY]
        for listener in list(self.listeners):
            listener(line)


class SharedWork(Generic[R]):
    """Pieces of work by key. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, _Running[R]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._running

    @property
    def count(self) -> int:
        """Pieces of work that are being done."""
        return len(self._running)

    async def do(self, key: str, work: Callable[[Say], Awaitable[R]], say: Say) -> R:
        """The result of `work`, which is begun unless work of that key is being done already.

        `say` gets what it says, from its beginning. Cancelled, this leaves the work to the others who wait for it; with
        the last of them the work is cancelled, and this returns when it has ended.
        """
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running()
            running.task = asyncio.ensure_future(self._run(key, running, work))
        for line in running.history:
            say(line)
        running.listeners.append(say)
        task = running.task
        assert task is not None
        try:
            return await asyncio.shield(task)
        finally:
            running.listeners.remove(say)
            if not running.listeners and not task.done():
                # Whoever comes now begins anew.
                self._running.pop(key, None)
                task.cancel()
                await asyncio.wait([task])

    async def _run(self, key: str, running: _Running[R], work: Callable[[Say], Awaitable[R]]) -> R:
        try:
            return await work(running.say)
        finally:
            if self._running.get(key) is running:
                del self._running[key]
