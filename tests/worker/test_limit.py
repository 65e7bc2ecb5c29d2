"""A writer over the rate is held, then loses output, and is told how much."""

import asyncio
from collections.abc import Callable

import pytest

from farcall.worker import limit
from farcall.worker.limit import OutputLimit


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


def run(work: Callable[[Stream], object], monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(limit, "HOLD_SECONDS", 0.05)

    async def main() -> Stream:
        stream = Stream()
        work(stream)
        await asyncio.sleep(0.06)  # the hold is over, by the loop's own clock
        return stream

    return asyncio.run(main())


def test_a_burst_passes_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = run(lambda stream: stream.limit.admit(2000), monkeypatch)
    assert stream.events == []


def test_a_writer_over_the_rate_is_held_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = run(lambda stream: [stream.limit.admit(1500), stream.limit.admit(1500)], monkeypatch)
    assert stream.events == ["hold", "release"]


def test_one_that_goes_on_loses_output_and_is_told_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "HOLD_SECONDS", 0.05)

    async def main() -> None:
        stream = Stream()
        assert stream.limit.admit(3000)  # what has been read is kept
        await asyncio.sleep(0.06)
        assert not stream.limit.admit(700)
        assert not stream.limit.admit(300)
        await asyncio.sleep(0.06)
        assert stream.limit.admit(10)
        assert stream.events[:2] == ["hold", "release"]
        assert "1,000 bytes of output dropped" in stream.events[2]

    asyncio.run(main())


def test_what_was_dropped_is_told_at_the_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "HOLD_SECONDS", 0.05)

    async def main() -> None:
        stream = Stream()
        stream.limit.admit(3000)
        await asyncio.sleep(0.06)
        stream.limit.admit(5)
        stream.limit.close()
        stream.limit.close()
        assert len(stream.events) == 3
        assert "5 bytes" in stream.events[2]

    asyncio.run(main())
