"""The queue of what is fetched before anybody asks."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from farcall.errors import ConnectionError, NotFoundError
from farcall.mounts.lazy import ahead
from farcall.mounts.lazy.ahead import Ahead


class Line:
    """Blobs on their way, which arrive when they are told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.coming: dict[int, asyncio.Future[None]] = {}

    async def fetch(self, number: int) -> None:
        self.begun.append(number)
        self.coming[number] = asyncio.get_running_loop().create_future()
        await self.coming[number]


def running(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is a coroutine."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@running
async def test_some_at_a_time_in_their_order() -> None:
    queue, line = Ahead(), Line()
    done = [queue.add(lambda number=number: line.fetch(number)) for number in range(20)]
    first = queue.add(lambda: line.fetch(99), is_first=True)
    await settled()
    assert line.begun == list(range(ahead._MOST))
    line.coming[3].set_result(None)
    await settled()
    assert line.begun[ahead._MOST :] == [99]
    assert done[3].done() and not done[2].done() and not first.done()


@running
async def test_what_fails_makes_room_too() -> None:
    queue, line = Ahead(), Line()
    done = [queue.add(lambda number=number: line.fetch(number)) for number in range(ahead._MOST + 1)]
    await settled()
    line.coming[0].set_exception(NotFoundError("this one is nowhere"))
    line.coming[1].cancel()
    await settled()
    assert line.begun[-1] == ahead._MOST
    assert done[0].result() is None and done[1].result() is None


@running
async def test_an_outage_ends_what_waits_and_the_next_is_tried_again() -> None:
    """Not one after another, for as long as it would take each of them to find out."""
    queue, line = Ahead(), Line()
    done = [queue.add(lambda number=number: line.fetch(number)) for number in range(100)]
    await settled()
    line.coming[0].set_exception(ConnectionError("nobody answers"))
    await settled()
    assert len(line.begun) == ahead._MOST
    assert all(one.done() for one in done[ahead._MOST :]), "nobody waits for what is let go"
    queue.add(lambda: line.fetch(100))
    await settled()
    assert line.begun[-1] == 100


@running
async def test_what_is_too_much_lets_the_oldest_go() -> None:
    queue, line = Ahead(), Line()
    most = ahead._MOST + ahead._MOST_QUEUED
    done = [queue.add(lambda number=number: line.fetch(number)) for number in range(most + 3)]
    await settled()
    assert [number for number, one in enumerate(done) if one.done()] == [ahead._MOST + more for more in range(3)]


@running
async def test_who_waits_is_first_in_line() -> None:
    queue, line = Ahead(), Line()
    with queue.waiting():
        for number in range(20):
            queue.add(lambda number=number: line.fetch(number))
        await settled()
        assert len(line.begun) == ahead._MOST_BESIDE
    await settled()
    assert len(line.begun) == ahead._MOST
