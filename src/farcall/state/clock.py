"""Wall time for what is kept, and whether it can be believed."""

import time
from collections.abc import Callable

# A clock that has just jumped (a machine that boots in 1970 or 2099, a hand that slips) is corrected soon, by NTP or by
# the hand; what is thrown away by it in the meantime does not come back.
SETTLE_SECONDS = 3600.0
JUMP_SECONDS = 60.0
# At a start nothing was watched: a clock this far ahead of the newest time in the store counts as having jumped.
FAR_AHEAD_SECONDS = 30 * 24 * 3600.0


def uptime() -> float:
    """Seconds that pass steadily, those of a suspended machine included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Clock:
    """Reads `now` (seconds since the epoch) and watches it against `steady`.

    `known` is a wall time that has certainly passed (the newest in the store), or None.
    """

    def __init__(
        self, now: Callable[[], float], steady: Callable[[], float] = uptime, known: float | None = None
    ) -> None:
        self._now = now
        self._steady = steady
        self._wall, self._at = now(), steady()
        far_ahead = known is not None and self._wall > known + FAR_AHEAD_SECONDS
        self._settled_at = self._at + SETTLE_SECONDS if far_ahead else self._at

    def now(self) -> float:
        """The wall time. It may go backwards, and it may be wrong."""
        wall, at = self._now(), self._steady()
        if abs((wall - self._wall) - (at - self._at)) > JUMP_SECONDS:
            self._settled_at = at + SETTLE_SECONDS
        self._wall, self._at = wall, at
        return wall

    def is_settled(self) -> bool:
        """Whether the wall clock has run without a jump for the last hour, as far as was watched."""
        self.now()
        return self._at >= self._settled_at
