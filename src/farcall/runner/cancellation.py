"""Stopping an input that runs: from a signal to an exception in the user's code, and nowhere else."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from farcall.errors import InputCancellation
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.channel import RunnerConnection

RETRY_SECONDS = 0.01  # after which an input that was in our code is interrupted again
# Of the runner; may be left at any point.
_ENTRIES = ("enter_user_code", "step_user_code", "_start", "_next", "unpickle_batch", "pickle_batch")
_OURS = ("farcall.wire.", "farcall.runner.")


class Cancellation:
    """Whether the input that runs on the main thread shall stop, and why.

    The runner sets `active` while the user's code runs. `raised` is the reason once the exception has been raised; it
    is raised at most once for an input. In code of ours, which must come to its end, it waits until that is done.
    """

    def __init__(self, page: SharedPage) -> None:
        self.connection: RunnerConnection | None = None
        self.on_pending: Callable[[], None] | None = None  # called where no exception is to be raised: in an event loop
        self.active = False
        self.pending = 0
        self.raised = 0
        self.seq = 0
        self._others: Sequence[int] = ()  # that run with `seq`, as a batch
        self._page = page
        self._retrying = False
        self._main_thread = _thread.get_ident()

    def install(self) -> None:
        """Takes SIGUSR1. Only the main thread may call this."""
        signal.signal(signal.SIGUSR1, self.on_signal)

    def begin(self, seq: int, others: Sequence[int] = ()) -> int:
        """Input `seq` runs from now on, and `others` with it. Returns why none of them must, else 0."""
        self.raised = self.pending = 0
        self.seq, self._others = seq, others
        return self._reason()

    def _reason(self) -> int:
        reason = self._page.cancelled(self.seq)
        if reason and self._others and not all(map(self._page.cancelled, self._others)):
            return 0  # the batch runs on for the others
        return reason

    def end(self) -> int:
        """The input has ended. Returns why it was to stop, 0 where it was not."""
        self.active = False
        self.seq = self.pending = 0
        return self.raised

    def request(self, reason: int, frame: FrameType | None = None) -> None:
        """The input that runs shall stop. From the main thread only; raises where the user's code was interrupted."""
        if self.seq == 0 or self.raised:
            return
        self.pending = reason
        if not self.active:
            if self.on_pending is not None:
                self.on_pending()
            elif self.connection is not None:
                self.connection.interrupt()
            return
        if frame is not None and not _is_ours(frame):
            self.check()
            return
        if self.connection is not None:
            self.connection.interrupt()
        if not self._retrying:
            self._retrying = True
            _thread.start_new_thread(self._retry, ())

    def check(self) -> None:
        """Raises where the input shall stop and has not been told. Called by code of ours that user code calls."""
        if self.pending and self.active and not self.raised:
            self.raised, self.pending, self.active = self.pending, 0, False
            happened = "was cancelled" if self.raised == SharedPage.CANCELLED else "ran longer than its timeout"
            raise InputCancellation(f"the input {happened}")

    def take(self) -> None:
        """The input that runs is being stopped by other means than an exception in it."""
        # What the worker says in a message is that it shall stop; why is on the page.
        self.raised = self.pending or self._page.cancelled(self.seq) or SharedPage.CANCELLED
        self.pending = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1: looks which input shall stop."""
        reason = self.pending or (self._reason() if self.seq else 0)
        if reason and reason != SharedPage.REVOKED:
            self.request(reason, frame)

    def _retry(self) -> None:
        pause = _thread.allocate_lock()
        pause.acquire()
        while self.pending:
            pause.acquire(timeout=RETRY_SECONDS)
            signal.pthread_kill(self._main_thread, signal.SIGUSR1)
        self._retrying = False


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the innermost user code that runs is inside a call of ours that must come to its end."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_OURS):
            # The function that calls the user's code is the first of ours below it.
            return frame.f_code.co_name not in _ENTRIES
        frame = frame.f_back
    return False
