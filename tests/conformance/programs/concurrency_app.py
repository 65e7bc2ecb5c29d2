"""What the tests of concurrency and batches call."""

import asyncio
import os
import threading
import time
import uuid
from typing import Any

import farcall

app = farcall.App("concurrency")
IDENTITY = uuid.uuid4().hex
attempts: list[Any] = []  # of this container
here = threading.Semaphore(0)


def arrive() -> None:
    here.release()


def all_here(count: int) -> bool:
    return here._value >= count  # type: ignore[attr-defined]


@app.function(max_containers=1)
@farcall.concurrent(max_inputs=8)
def meet(count: int) -> tuple[str, bool, str | None, int]:
    """Waits until `count` inputs run in this container."""
    arrive()
    end = time.monotonic() + 30
    while not all_here(count) and time.monotonic() < end:
        time.sleep(0.001)
    return IDENTITY, all_here(count), farcall.current_input_id(), threading.get_ident()


@app.function(max_containers=1)
@farcall.concurrent(max_inputs=8)
async def meet_later(count: int) -> tuple[str, bool, str | None, int]:
    arrive()
    end = time.monotonic() + 30
    while not all_here(count) and time.monotonic() < end:  # noqa: ASYNC110 - one way for threads and tasks
        await asyncio.sleep(0.001)
    return IDENTITY, all_here(count), farcall.current_input_id(), threading.get_ident()


@app.cls(max_containers=1, timeout=60)
@farcall.concurrent(max_inputs=4)
class Counted:
    """Counts how many of its inputs run at once."""

    @farcall.enter()
    def begin(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0

    def count_one(self, change: int) -> None:
        with self.lock:
            self.running += change
            self.most = max(self.most, self.running)

    @farcall.method()
    def plain(self, seconds: float) -> str:
        self.count_one(1)
        time.sleep(seconds)
        self.count_one(-1)
        return IDENTITY

    @farcall.method()
    async def later(self, seconds: float) -> str:
        self.count_one(1)
        await asyncio.sleep(seconds)
        self.count_one(-1)
        return IDENTITY

    @farcall.method()
    def count(self, n: int) -> Any:
        for i in range(n):
            time.sleep(0.01)
            yield i

    @farcall.method()
    def report(self) -> tuple[str, int]:
        return IDENTITY, self.most


@app.cls(max_containers=1)
@farcall.concurrent(max_inputs=4)
class Tasks:
    @farcall.enter()
    def begin(self) -> None:
        self.events: list[str] = []

    @farcall.method()
    async def block(self, name: str) -> str:
        self.events.append(f"{name} started")
        try:
            print("started", flush=True)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.events.append(f"{name} cancelled")
            raise
        return name

    @farcall.method()
    async def nap(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return IDENTITY

    @farcall.method()
    async def report(self) -> tuple[str, list[str]]:
        events, self.events = self.events, []
        return IDENTITY, events


@app.cls(max_containers=1)
@farcall.concurrent(max_inputs=10)
class Door:
    """Lets those that wait go on when it is opened, for ever."""

    name: str = farcall.parameter()

    @farcall.enter()
    def begin(self) -> None:
        self.opened = threading.Event()

    @farcall.method()
    def open(self) -> None:
        self.opened.set()

    @farcall.method()
    def wait(self) -> None:
        self.opened.wait(100)


@app.function(max_containers=2)
@farcall.concurrent(max_inputs=4)
async def hold_up(door: str = "") -> str:
    """Blocks the loop, as careless code does."""
    print("started", flush=True)
    if door:
        Door(name=door).wait.remote()
    return IDENTITY


@app.cls(max_containers=1)
@farcall.concurrent(max_inputs=4)
class Threads:
    @farcall.enter()
    def begin(self) -> None:
        self.may_end = threading.Event()

    @farcall.method()
    def identity(self) -> str:
        return IDENTITY

    @farcall.method()
    def hold(self, until_not: str = "") -> str:
        """Runs until it is let go, or in another container than the one that is named not at all."""
        print("started", flush=True)
        if until_not in ("", IDENTITY):
            self.may_end.wait(60)
        return IDENTITY

    @farcall.method()
    def let_go_behind(self, door: str) -> None:
        """What is held ends when the door is opened."""

        def wait() -> None:
            Door(name=door).wait.remote()
            self.may_end.set()

        threading.Thread(target=wait, daemon=True).start()


@app.function(max_containers=1, timeout=1)
@farcall.concurrent(max_inputs=4)
async def timed_tasks(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return IDENTITY


@app.function(max_containers=1, timeout=1)
@farcall.concurrent(max_inputs=4)
def timed_threads(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.function(max_containers=1, retries=farcall.Retries(max_retries=2, initial_delay=0.0))
@farcall.concurrent(max_inputs=4)
def crash_together(path_of_no_return: bool) -> int:
    arrive()
    while not all_here(2):
        time.sleep(0.001)
    if path_of_no_return:
        os._exit(5)
    time.sleep(60)
    return 0


@app.function(max_containers=1)
@farcall.concurrent(max_inputs=4)
async def itself(depth: int) -> list[str]:
    """Calls itself, in the one container there may be."""
    return [IDENTITY, *(await itself.remote.aio(depth - 1) if depth else [])]


@app.function(max_containers=1)
@farcall.concurrent(max_inputs=10)
def printing(name: str) -> None:
    arrive()
    while not all_here(4):
        time.sleep(0.001)
    for part in ("one", "two"):
        print(part, name, end=" ")
        time.sleep(0.002)
        print("end", name)


# --- batches


@app.function(max_containers=1)
@farcall.batched(max_batch_size=4, wait_ms=20_000)
def full_batch(xs: list[int], ys: list[int]) -> list[tuple[int, list[int], str | None]]:
    return [(x + y, xs, farcall.current_input_id()) for x, y in zip(xs, ys, strict=True)]


@app.function(max_containers=1)
@farcall.batched(max_batch_size=4, wait_ms=300)
def batch(xs: list[int], ys: list[int]) -> list[tuple[int, list[int], str | None]]:
    return [(x + y, xs, farcall.current_input_id()) for x, y in zip(xs, ys, strict=True)]


@app.function(max_containers=1)
@farcall.batched(max_batch_size=4, wait_ms=20_000)
async def batch_later(xs: list[Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [(x, len(xs)) for x in xs]


@app.function(max_containers=1)
@farcall.concurrent(max_inputs=3)
@farcall.batched(max_batch_size=2, wait_ms=20_000)
async def batches_at_once(xs: list[int]) -> list[bool]:
    arrive()
    end = time.monotonic() + 30
    while not all_here(3) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return [all_here(3)] * len(xs)


@app.function(max_containers=1)
@farcall.batched(max_batch_size=4, wait_ms=100)
def wrong(kinds: list[str]) -> Any:
    if kinds[0] == "short":
        return kinds[1:]
    if kinds[0] == "long":
        return [*kinds, 1]
    if kinds[0] == "none":
        return None
    if kinds[0] == "dict":
        return dict.fromkeys(kinds)
    if kinds[0] == "raise":
        raise KeyError(*kinds)
    return kinds


@app.cls(max_containers=1)
class Batched:
    @farcall.enter()
    def begin(self) -> None:
        self.sizes: list[int] = []

    @farcall.batched(max_batch_size=3, wait_ms=20_000)
    def run(self, xs: list[Any]) -> list[Any]:
        self.sizes.append(len(xs))
        return [(x, self.sizes) for x in xs]


@app.function(max_containers=1, retries=farcall.Retries(max_retries=3, initial_delay=0.0))
@farcall.batched(max_batch_size=3, wait_ms=20_000)
def fail_at_first(xs: list[int]) -> list[tuple[int, int]]:
    """Fails the first two batches that it is given; then how many inputs each batch had."""
    attempts.append(len(xs))
    if len(attempts) <= 2:
        raise ValueError(f"attempt {len(attempts)}")
    return [(x, len(attempts)) for x in xs]


@app.cls(max_containers=1)
class SlowBatches:
    @farcall.enter()
    def begin(self) -> None:
        self.events: list[Any] = []

    @farcall.batched(max_batch_size=3, wait_ms=20_000)
    def run(self, items: list[Any]) -> list[Any]:
        """Takes so many seconds, or until the door is opened that one of the items names."""
        events, self.events = self.events, [items]
        try:
            print("started", flush=True)
            if isinstance(items[0], str):
                Door(name=items[0]).wait.remote()
            else:
                time.sleep(max(items))
        except farcall.errors.InputCancellation:
            self.events.append("InputCancellation")
            raise
        return [events] * len(items)


@app.function(max_containers=1, timeout=1)
@farcall.batched(max_batch_size=3, wait_ms=200)
def timed_batch(seconds: list[float]) -> list[str]:
    time.sleep(max(seconds))
    return [IDENTITY] * len(seconds)


@app.function(max_containers=1)
@farcall.batched(max_batch_size=10, wait_ms=20_000)
def patient(xs: list[int]) -> list[int]:
    return xs


# --- one input for each container


@app.function(single_use_containers=True)
async def single_use_later() -> str:
    return IDENTITY


@app.cls(single_use_containers=True)
class SingleUse:
    @farcall.method()
    def plain(self) -> str:
        return IDENTITY

    @farcall.method()
    async def later(self) -> str:
        return IDENTITY


@app.function(single_use_containers=True, retries=farcall.Retries(max_retries=2, initial_delay=0.0))
def single_use_fails() -> None:
    attempts.append(None)
    raise ValueError(f"input {len(attempts)} of this container")
