"""How much a container may print: its output costs the server's memory and disk, not its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

RATE = 8 * 1024 * 1024  # bytes a second that are kept
BURST = 16 * 1024 * 1024  # bytes
HOLD_SECONDS = 1.0  # how long a writer over the rate is held before its output is dropped


class OutputLimit:
    """Keeps one stream of output to a rate.

    A writer over it is held: `hold` is called, and `release` after `HOLD_SECONDS`. If it goes on, what it writes is
    dropped for as long again, and `say` gets a line that tells how much.
    """

    def __init__(
        self,
        hold: Callable[[], None],
        release: Callable[[], None],
        say: Callable[[str], None],
        *,
        rate: float = RATE,
        burst: float = BURST,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hold = hold
        self._release = release
        self._say = say
        self._rate = rate
        self._burst = burst
        self._budget = float(burst)
        self._counted_at = self._loop.time()
        self._dropping_until = 0.0
        self._dropped = 0
        self._held: asyncio.TimerHandle | None = None

    def admit(self, size: int) -> bool:
        """Whether to keep `size` bytes that have come."""
        now = self._loop.time()
        self._budget = min(self._burst, self._budget + (now - self._counted_at) * self._rate) - size
        self._counted_at = now
        if self._dropping_until:
            if now < self._dropping_until:
                self._dropped += size
                return False
            self._end_dropping()
        if self._budget < 0 and self._held is None:
            self._hold()
            self._held = self._loop.call_later(HOLD_SECONDS, self._go_on)
        return True

    def close(self) -> None:
        """The stream has ended."""
        if self._held is not None:
            self._held.cancel()
            self._held = None
        self._end_dropping()

    def _go_on(self) -> None:
        self._held = None
        self._budget = 0.0
        self._counted_at = self._loop.time()
        self._dropping_until = self._counted_at + HOLD_SECONDS
        self._release()

    def _end_dropping(self) -> None:
        self._dropping_until = 0.0
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._say(f"[farcall: {dropped:,} bytes of output dropped: more than {self._rate / 2**20:g} MiB/s]\n")
