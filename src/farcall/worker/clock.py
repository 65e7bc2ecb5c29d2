"""The clock of what happens to apps: windows, delays, timeouts."""

from __future__ import annotations

import asyncio


class Clock:
    """The running loop's seconds, and those that a test has let pass beside them."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._passed = 0.0

    def now(self) -> float:
        """Monotonic seconds."""
        return self._time() + self._passed

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._passed += seconds
