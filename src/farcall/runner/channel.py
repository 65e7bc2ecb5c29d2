"""The runner's end of the connection: it can be watched by a loop for long, and a wait on it can be interrupted."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from farcall.errors import ConnectionLostError
from farcall.wire import messages
from farcall.wire.connection import Connection, Waiter

if TYPE_CHECKING:
    import asyncio


class RunnerConnection(Connection):
    """A connection on which the main thread's wait can be ended from a signal handler.

    An exception must not leave the code that reads: what had been read would be lost. So a handler calls
    `interrupt`, and `on_interrupted` is called, and may raise, where `wait` has nothing in its hands any more.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Any, tuple[int, ...]], None],
        on_close: Callable[[ConnectionLostError], None],
        on_interrupted: Callable[[], None],
    ) -> None:
        super().__init__(sock, messages.ToRunner, on_message, on_close)
        self._on_interrupted = on_interrupted
        self._waiting: Waiter | None = None  # of the main thread
        # What it says ends a wait as what comes from the peer does.
        self._bell = open(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "rb", buffering=0)  # noqa: SIM115
        self._rung = False
        self._poll.register(self._bell, select.POLLIN)
        self.longest_sleep = 3600.0  # what a signal is to end comes on the connection, too
        self._senders: set[int] = set()  # threads
        self._main_thread = get_ident()

    def wait(self, waiter: Waiter, timeout: float | None = None) -> bool:
        """Blocks until the waiter is set, as `Connection.wait` does; on the main thread it may raise what
        `on_interrupted` raises."""
        if get_ident() != self._main_thread:
            return super().wait(waiter, timeout)
        outer, self._waiting = self._waiting, waiter
        try:
            return super().wait(waiter, timeout)
        finally:
            self._waiting = outer
            if self._rung:
                self._rung = False
                with contextlib.suppress(BlockingIOError):  # it has been rung again, and both were read at once
                    os.eventfd_read(self._bell.fileno())
            self._on_interrupted()

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Sends one message, as `Connection.send` does."""
        thread = get_ident()
        self._senders.add(thread)
        try:
            super().send(message, fds)
        finally:
            self._senders.discard(thread)

    @property
    def is_sending(self) -> bool:
        """Whether this thread is sending: a signal handler has interrupted it, and must not send."""
        return get_ident() in self._senders

    def interrupt(self) -> None:
        """From a signal handler, on the main thread: ends its wait. Without one this does nothing."""
        waiter = self._waiting
        if waiter is None:
            return
        waiter.set()
        self._rung = True
        os.eventfd_write(self._bell.fileno(), 1)

    def abandon(self) -> None:
        """After a fork, in the child, as `Connection.abandon` does."""
        super().abandon()
        self._waiting = None
        self._bell.close()  # the parent's, too: nobody is to ring it here

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the loop reads the connection, also while nobody waits for it."""
        self._watch(loop)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends `watch`."""
        self._unwatch(loop)
