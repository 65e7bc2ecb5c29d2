"""What the tests of maps call."""

import os
import threading
import time
import uuid
from typing import Any

import farcall

app = farcall.App("map")
IDENTITY = uuid.uuid4().hex


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
async def double_later(x: int) -> int:
    return 2 * x


@app.function()
def combine(a: Any, b: Any = None, *, c: Any = None) -> tuple[Any, Any, Any]:
    return a, b, c


@app.function(max_containers=2)
def first_ends_last(x: int, seen: int, logs: bool = False) -> int:
    """Where it is 0, ends when so many have been logged; others log themselves if told to, and end at once."""
    if x and logs:
        Log().add.remote(x)
    while not x and Log().count.remote() < seen:
        time.sleep(0.01)
    return x


@app.function(max_containers=2)
def sleep_and_fail(seconds: float, message: str) -> None:
    time.sleep(seconds)
    if message:
        raise ValueError(message)


@app.function()
def fail_at(x: int, at: int) -> int:
    if x == at:
        raise ValueError(f"input {x}")
    return x


@app.function(max_containers=4)
def identity_after(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.cls(max_containers=1)
class Log:
    """Remembers which inputs it has run."""

    @farcall.enter()
    def begin(self) -> None:
        self.seen: list[int] = []
        self.threads: set[int] = set()

    @farcall.method()
    def add(self, x: int, fail: int = -1, pause: float = 0.0) -> int:
        self.seen.append(x)
        self.threads.add(threading.get_ident())
        time.sleep(pause)
        if x == fail:
            raise ValueError(f"input {x}")
        return x

    @farcall.method()
    def count(self) -> int:
        return len(self.seen)

    @farcall.method()
    def where(self) -> tuple[int, bool]:
        return len(self.threads), self.threads == {threading.main_thread().ident}


@app.function()
def nested(n: int) -> list[int]:
    return list(double.map(range(n)))


@app.function()
def nested_twice(n: int) -> int:
    return sum(sum(part) for part in nested.map(range(n)))


@app.function()
async def nested_async(n: int) -> list[int]:
    return [x async for x in double.map.aio(range(n), order_outputs=False)]


@app.function()
def block(size: int) -> bytes:
    return bytes(size)


@app.function()
def pid() -> int:
    return os.getpid()
