"""A writer over the rate is held, then loses output, and is told how much."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from farcall.worker import limit
from farcall.worker.limit import HOLD_SECONDS, OutputLimit


class Clock:
    """What of an event loop the limit uses; its time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> SimpleNamespace:
        entry = self.now + delay, call
        self._later.append(entry)
        return SimpleNamespace(cancel=lambda: self._later.remove(entry))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        for entry in sorted((entry for entry in self._later if entry[0] <= end), key=lambda entry: entry[0]):
            self._later.remove(entry)
            self.now = entry[0]
            entry[1]()
        self.now = end


class Stream:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.limit = OutputLimit(
            lambda: self.events.append("hold"),
            lambda: self.events.append("release"),
            self.events.append,
            rate=1000,
            burst=2000,
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(limit, "asyncio", SimpleNamespace(get_running_loop=lambda: made))
    return made


def test_a_burst_passes_untouched(clock: Clock) -> None:
    stream = Stream()
    assert stream.limit.admit(2000)
    clock.advance(2 * HOLD_SECONDS)
    assert stream.events == []


def test_a_writer_over_the_rate_is_held_and_released(clock: Clock) -> None:
    stream = Stream()
    assert stream.limit.admit(1500)
    assert stream.limit.admit(1500)
    assert stream.events == ["hold"]
    clock.advance(HOLD_SECONDS)
    assert stream.events == ["hold", "release"]


def test_one_that_goes_on_loses_output_and_is_told_how_much(clock: Clock) -> None:
    stream = Stream()
    assert stream.limit.admit(3000)  # what has been read is kept
    clock.advance(1.2 * HOLD_SECONDS)
    assert not stream.limit.admit(700)
    assert not stream.limit.admit(300)
    clock.advance(HOLD_SECONDS)
    assert stream.limit.admit(10)
    assert stream.events[:2] == ["hold", "release"]
    assert "1,000 bytes of output dropped" in stream.events[2]


def test_what_was_dropped_is_told_at_the_end_too(clock: Clock) -> None:
    stream = Stream()
    stream.limit.admit(3000)
    clock.advance(1.2 * HOLD_SECONDS)
    stream.limit.admit(5)
    stream.limit.close()
    stream.limit.close()
    assert len(stream.events) == 3
    assert "5 bytes" in stream.events[2]


def test_a_stream_that_ends_while_it_is_held_is_not_released(clock: Clock) -> None:
    stream = Stream()
    stream.limit.admit(3000)
    stream.limit.close()
    clock.advance(2 * HOLD_SECONDS)
    assert stream.events == ["hold"]
