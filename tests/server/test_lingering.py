"""Staying awake for a moment after an answer."""

import asyncio
import time

import pytest

from farcall.server.lingering import Lingering


class CoarseLoop(asyncio.SelectorEventLoop):
    """A loop whose clock has not moved on yet. That of uvloop does so once a millisecond."""

    turns = 0

    def time(self) -> float:
        return 0.0

    def call_soon(self, *args, **kwargs):
        self.turns += 1
        return super().call_soon(*args, **kwargs)


def test_it_ends_however_coarse_the_clock_of_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    loop = CoarseLoop()
    try:
        lingering = Lingering(loop)
        lingering.start()
        began, looked = time.monotonic(), -1
        while loop.turns > looked:  # it has had the loop make another turn
            assert time.monotonic() < began + 10
            looked = loop.turns
            loop._run_once()  # type: ignore[attr-defined]
    finally:
        loop.close()
