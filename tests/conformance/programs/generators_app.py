"""What the tests of generators call."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import farcall

app = farcall.App("generators")


@app.function()
def count(n: int) -> Iterator[int]:
    yield from range(n)


@app.function()
async def count_later(n: int) -> AsyncIterator[int]:
    for x in range(n):
        await asyncio.sleep(0)
        yield x


@app.function()
def blocks(n: int, size: int) -> Iterator[bytes]:
    for x in range(n):
        yield bytes([x % 256]) * size


@app.function()
def break_at(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError(f"after {n} items")


@app.function()
async def break_later_at(n: int) -> AsyncIterator[int]:
    for x in range(n):
        yield x
    raise ValueError(f"after {n} items")


@app.function()
def yield_lock() -> Iterator[Any]:
    import threading

    yield 1
    yield threading.Lock()


@app.cls(max_containers=1)
class Source:
    """Remembers how far its generators have come and how they ended."""

    @farcall.enter()
    def begin(self) -> None:
        self.made = 0
        self.ends: list[str] = []

    @farcall.method()
    def endless(self) -> Iterator[int]:
        self.made = 0
        try:
            while True:
                self.made += 1
                yield self.made
        except GeneratorExit:
            self.ends.append("closed")
            raise
        finally:
            self.ends.append("finally")

    @farcall.method()
    async def endless_later(self) -> AsyncIterator[int]:
        self.made = 0
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.ends.append("finally")

    @farcall.method()
    def state(self) -> tuple[int, list[str]]:
        ends, self.ends = self.ends, []
        return self.made, ends


@app.cls(max_containers=1)
class Taken:
    """How many items the consumer has."""

    @farcall.enter()
    def begin(self) -> None:
        self.count = 0

    @farcall.method()
    def one_more(self) -> None:
        self.count += 1

    @farcall.method()
    def so_far(self) -> int:
        return self.count


@app.function(timeout=60)
def handshake() -> Iterator[str]:
    """Goes on when each of its items has been taken."""
    import time

    for n in range(3):
        yield f"item {n}"
        while Taken().so_far.remote() <= n:
            time.sleep(0.01)


@app.function()
def returns_a_generator(n: int) -> Any:
    return (x for x in range(n))


@app.function(is_generator=True)
def declared(n: int) -> Any:
    return (x for x in range(n))


@app.function()
def in_container(n: int) -> list[int]:
    return list(count.remote_gen(n))
