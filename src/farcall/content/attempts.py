"""What may be tried again: how often, after which pause, and what becomes of it in the end."""

import threading
import time
from collections.abc import Callable
from random import random
from typing import NamedTuple

from farcall.errors import FarcallError


class Timing(NamedTuple):
    """Time limits and patience; all times are seconds. `sleep` waits, and returns earlier when the event is set."""

    connect: float = 10.0
    read: float = 30.0  # without a byte
    slowest: float = 1024.0  # bytes a second; a transfer that is slower for as long as `read` has stalled
    attempts: int = 5  # in a row without progress; a time limit that ran out counts as two
    first_delay: float = 0.5
    longest_delay: float = 15.0
    longest_retry_after: float = 120.0  # who wants to be left alone for longer is an error
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[threading.Event, float], object] = threading.Event.wait
    random: Callable[[], float] = random


PATIENT = Timing()


class TransientError(Exception):
    """A failure that may pass. What becomes of it when it does not: an `error` that says `what`, then `advice`."""

    def __init__(
        self,
        error: type[FarcallError],
        what: str,
        advice: str = "Try again later",
        *,
        retry_after: float | None = None,
        cost: int = 1,
    ) -> None:
        super().__init__(what)
        self.error = error
        self.what = what
        self.advice = advice
        self.retry_after = retry_after
        self.cost = cost


class StoppedError(Exception):
    """What was being done is wanted no more."""


class Attempts:
    """The patience for one thing that is asked for: how often it was tried and how long that took."""

    def __init__(self, timing: Timing, stop: threading.Event) -> None:
        self._timing = timing
        self._stop = stop
        self._start = timing.clock()
        self._spent = 0
        self._tries = 0

    def progressed(self) -> None:
        """The last attempt got further than the one before: patience begins anew."""
        self._spent = 0

    def failed(self, failure: TransientError) -> None:
        """Waits until the next attempt. Raises the typed error when there is to be none; `StoppedError`."""
        self._spent += failure.cost
        self._tries += 1
        timing = self._timing
        if self._spent >= timing.attempts:
            tries = (
                f"{self._tries} attempts in {timing.clock() - self._start:.0f} s" if self._tries > 1 else "1 attempt"
            )
            raise failure.error(f"{failure.what} ({tries}). {failure.advice}")
        delay = min(timing.longest_delay, timing.first_delay * 2 ** (self._spent - 1))
        delay *= 0.5 + timing.random() / 2
        if failure.retry_after is not None:
            if failure.retry_after > timing.longest_retry_after:
                raise failure.error(
                    f"{failure.what}: it asks to be left alone for {failure.retry_after:.0f} s. {failure.advice}"
                )
            delay = max(delay, failure.retry_after)
        timing.sleep(self._stop, delay)
        if self._stop.is_set():
            raise StoppedError
