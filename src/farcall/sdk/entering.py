"""Enter hooks of objects that are made in this process, for `.local` and for local mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_inside: ContextVar[Entering | None] = ContextVar("farcall_entering", default=None)


class Entering:
    """Runs an object's enter hooks, once: before the first of its methods that runs here, whoever calls it.

    Another thread, or another task, that calls a method meanwhile waits. What a hook raises is raised to who had it
    run, and the next one runs them again. Hooks may call the object's methods.
    """

    def __init__(self, made: Any, hooks: Sequence[Callable[..., Any]]) -> None:
        self._made = made
        self._hooks = hooks
        self._done = not hooks
        self._lock = threading.Lock()
        self._running: asyncio.Future[None] | None = None

    @property
    def done(self) -> bool:
        """Whether they have run."""
        return self._done

    def blocking(self, wait: Callable[[Any], Any]) -> None:
        """From plain code; `wait` gives the result of what is awaitable."""
        if self._done or _inside.get() is self:
            return
        with self._lock:
            if self._done:
                return
            token = _inside.set(self)
            try:
                for hook in self._hooks:
                    result = hook(self._made)
                    if hasattr(result, "__await__"):
                        wait(result)
            finally:
                _inside.reset(token)
            self._done = True

    async def awaited(self) -> None:
        """From asynchronous code."""
        import asyncio

        while not self._done and _inside.get() is not self:
            if self._running is not None:
                await self._running
                continue
            self._running = running = asyncio.get_running_loop().create_future()
            token = _inside.set(self)
            try:
                for hook in self._hooks:
                    result = hook(self._made)
                    if hasattr(result, "__await__"):
                        await result
                self._done = True
            finally:
                _inside.reset(token)
                self._running = None
                running.set_result(None)


def wait(awaitable: Any) -> Any:
    """The result of what is awaitable, in plain code: on a loop of its own, in another thread where this one's runs."""
    import asyncio

    async def awaited() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(awaited()))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,))
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
