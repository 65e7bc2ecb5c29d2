"""Staying awake for a moment after an answer."""

from __future__ import annotations

import asyncio
import os

SECONDS = 100e-6


class Lingering:
    """Keeps the loop looking for messages for `SECONDS` after the answer to a lone call, instead of sleeping.

    Who calls one function after another asks again within that time, and to be woken costs as much as the rest of a
    short call does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until = 0.0  # 0: it does not
        self._allowed = (os.cpu_count() or 1) > 1  # with one core it would keep the caller from asking

    def start(self) -> None:
        """From now on."""
        if not self._allowed:
            return
        begins = self._until == 0.0
        self._until = self._loop.time() + SECONDS
        if begins:
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self._loop.time() < self._until:
            self._loop.call_soon(self._look)
        else:
            self._until = 0.0
