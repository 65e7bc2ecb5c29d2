"""Staying awake for a moment after an answer."""

from __future__ import annotations

import asyncio
import os
import time

SECONDS = 100e-6


class Lingering:
    """Keeps the loop looking for messages for `SECONDS` after the answer to a lone call, instead of sleeping.

    Who calls one function after another asks again within that time, and to be woken costs as much as the rest of a
    short call does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until = 0.0
        self._looks = False
        self._allowed = (os.cpu_count() or 1) > 1  # with one core it would keep the caller from asking

    def start(self) -> None:
        """From now on."""
        if not self._allowed:
            return
        # Not the loop's time: uvloop counts that in milliseconds.
        self._until = time.monotonic() + SECONDS
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    def stop(self) -> None:
        """The next call has come, and is on its way to another machine: its answer takes longer than this."""
        self._until = 0.0

    def _look(self) -> None:
        self._looks = time.monotonic() < self._until
        if self._looks:
            self._loop.call_soon(self._look)
