"""Staying awake between the messages of short calls."""

import asyncio
import time

import pytest

from farcall.wire import lingering
from farcall.wire.lingering import SECONDS, Lingering


class CoarseLoop(asyncio.SelectorEventLoop):
    """A loop whose clock has not moved on yet. That of uvloop does so once a millisecond."""

    turns = 0

    def time(self) -> float:
        return 0.0

    def call_soon(self, *args, **kwargs):
        self.turns += 1
        return super().call_soon(*args, **kwargs)


class Process:
    """A process that passes calls on, and its clock: a loop that makes its turns when asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processors: int = 2) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(processors)))
        monkeypatch.setattr(lingering.time, "monotonic", lambda: self.now)
        self.now = 1000.0
        self.soon = []
        self.lingering = Lingering(self)  # type: ignore[arg-type]

    def call_soon(self, callback):
        self.soon.append(callback)

    @property
    def is_awake(self) -> bool:
        """Whether the loop, which has nothing else to do, does not sleep now."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        return bool(self.soon)

    def call(self, *, after: float, is_lone: bool = True) -> None:
        self.now += after
        self.lingering.call(is_lone=is_lone)

    def answer(self, *, after: float, is_lone: bool = True) -> None:
        self.now += after
        self.lingering.answer(is_lone=is_lone)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_it_ends_however_coarse_the_clock_of_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    loop = CoarseLoop()
    try:
        Lingering(loop).answer(is_lone=True)
        began, looked = time.monotonic(), -1
        while loop.turns > looked:  # it has had the loop make another turn
            assert time.monotonic() < began + 10
            looked = loop.turns
            loop._run_once()  # type: ignore[attr-defined]
        assert looked > 0
    finally:
        loop.close()


def test_between_short_calls_the_loop_stays_awake(process: Process) -> None:
    process.call(after=0.0)
    for _ in range(3):
        assert process.is_awake
        process.answer(after=SECONDS / 2)
        assert process.is_awake
        process.call(after=SECONDS / 2)
    process.now += 0.9 * SECONDS
    assert process.is_awake
    process.now += 0.2 * SECONDS
    assert not process.is_awake


def test_where_functions_take_long_only_the_next_call_is_waited_for_awake(process: Process) -> None:
    process.call(after=0.0)
    for _ in range(3):
        process.answer(after=0.1)
        assert process.is_awake
        process.call(after=SECONDS / 2)
        assert not process.is_awake
    process.answer(after=SECONDS / 2)  # that one was short
    assert process.is_awake
    process.call(after=SECONDS / 2)
    assert process.is_awake


def test_where_calls_are_seldom_only_answers_are_waited_for_awake(process: Process) -> None:
    process.call(after=0.0)
    process.answer(after=SECONDS / 2)
    for _ in range(3):
        process.call(after=1.0)
        assert process.is_awake
        process.answer(after=SECONDS / 2)
        assert not process.is_awake


def test_many_calls_at_once_keep_it_awake_by_themselves(process: Process) -> None:
    process.call(after=0.0, is_lone=False)
    assert not process.is_awake
    process.answer(after=10.0, is_lone=False)
    assert not process.is_awake
    process.call(after=SECONDS / 2)  # what was seen of those says nothing of lone ones
    assert process.is_awake


def test_a_single_processor_is_left_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, processors=1)
    for _ in range(2):
        process.call(after=SECONDS / 2)
        assert not process.is_awake
        process.answer(after=SECONDS / 2)
        assert not process.is_awake
