"""The clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable

from farcall.errors import InvalidError


class Clock:
    """Seconds that pass when they are told to: what waits on this clock waits no time at all.

    Retry delays, timeouts, cold starts and scaledown windows of an app under test are on it. Give `clock.sleep` and
    `clock.now` to code of your own that waits (in place of `time.sleep` and `time.monotonic`) and it shares the time.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._on_move: list[Callable[[], None]] = []

    def now(self) -> float:
        """Seconds since the run began."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass: idle containers whose scaledown window ends in them are gone afterwards."""
        if not seconds >= 0:
            raise InvalidError(f"Clock.advance({seconds!r}): time passes forward only")
        self._now += seconds
        for moved in self._on_move:
            moved()

    sleep = advance

    def on_move(self, moved: Callable[[], None]) -> None:
        """Calls `moved` after every move."""
        self._on_move.append(moved)

    def __repr__(self) -> str:
        return f"<Clock at {self._now:g} s>"
