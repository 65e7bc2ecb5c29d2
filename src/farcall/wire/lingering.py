"""Staying awake between the messages of short calls that follow one another."""

from __future__ import annotations

import asyncio
import time

from farcall.wire import processors

SECONDS = 1e-3

_CALL, _ANSWER = 0, 1


class Lingering:
    """Keeps the loop of a process that passes calls on looking for messages for up to `SECONDS`, instead of sleeping.

    To be woken costs as much as the rest of a short call does, above all whoever wakes. There are two such waits, for
    an answer and for the next call; the loop stays awake in one only where the last of its kind was that short.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until = 0.0
        self._looks = False
        self._waits_for = _CALL
        self._began = 0.0  # the wait, 0: it says nothing
        self._was_short = [True, True]
        self._allowed = processors.are_several()

    def call(self, *, is_lone: bool) -> None:
        """A call has been passed on; `is_lone`: there is no other."""
        self._wait(_ANSWER, is_lone)

    def answer(self, *, is_lone: bool) -> None:
        """An answer has been passed on; `is_lone`: no other is waited for."""
        self._wait(_CALL, is_lone)

    def _wait(self, what: int, is_lone: bool) -> None:
        # Not the loop's time: uvloop counts that in milliseconds.
        now = time.monotonic()
        if self._began:
            self._was_short[self._waits_for] = now - self._began < SECONDS
        self._waits_for = what
        self._began = now if is_lone and self._allowed else 0.0
        if not self._began or not self._was_short[what]:
            self._until = 0.0
            return
        self._until = now + SECONDS
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks = time.monotonic() < self._until
        if self._looks:
            processors.give_way()  # whoever is to answer may have been woken on this processor
            self._loop.call_soon(self._look)
