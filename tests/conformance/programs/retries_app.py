"""What the tests of retries, timeouts and cancellation call."""

import asyncio
import itertools
import os
import time
import uuid
from typing import Any

import farcall

app = farcall.App("retries")
IDENTITY = uuid.uuid4().hex
attempts: list[float] = []  # of this container


@app.function(retries=2, max_containers=1)
def fail_times(count: int) -> tuple[int, list[float]]:
    """Fails the first `count` attempts; then their number and the pauses between them."""
    attempts.append(time.monotonic())
    if len(attempts) <= count:
        raise ValueError(f"attempt {len(attempts)}")
    pauses = [after - before for before, after in itertools.pairwise(attempts)]
    number = len(attempts)
    attempts.clear()
    return number, pauses


@app.function(
    retries=farcall.Retries(max_retries=4, initial_delay=0.1, backoff_coefficient=10.0, max_delay=0.3), max_containers=1
)
def fail_with_backoff(count: int) -> tuple[int, list[float]]:
    return fail_times.local(count)


@app.function(retries=farcall.Retries(max_retries=3, initial_delay=0.0), max_containers=1)
def always_fail() -> None:
    attempts.append(time.monotonic())
    raise ValueError(f"attempt {len(attempts)}")


@app.function()
def fail_on(number: int) -> None:
    raise ValueError(number)


@app.function()
def crash() -> None:
    os._exit(4)


@app.function(retries=farcall.Retries(max_retries=2, initial_delay=0.0), timeout=1, max_containers=1)
def too_slow_at_first() -> int:
    attempts.append(time.monotonic())
    if len(attempts) < 3:
        time.sleep(30)
    return len(attempts)


@app.function(timeout=1)
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.function(timeout=1)
async def sleep_later(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@app.function(timeout=1)
def stubborn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(seconds)
        except BaseException:
            continue


@app.cls(startup_timeout=1, timeout=20)
class SlowStart:
    @farcall.enter()
    def begin(self) -> None:
        time.sleep(30)

    @farcall.method()
    def anything(self) -> None: ...


@app.cls(startup_timeout=20, timeout=1)
class SlowStartAllowed:
    @farcall.enter()
    def begin(self) -> None:
        time.sleep(1.3)

    @farcall.method()
    def anything(self) -> str:
        return "done"


@app.cls(max_containers=1)
class Cancelled:
    """What happens to inputs that are cancelled, told by the container that lives on."""

    @farcall.enter()
    def begin(self) -> None:
        self.events: list[str] = []

    @farcall.method()
    def block(self, line: str = "started") -> None:
        self.events.append("started")
        try:
            print(line, flush=True)
            time.sleep(60)
        except farcall.errors.InputCancellation:
            self.events.append("InputCancellation")
            raise
        finally:
            self.events.append("finally")

    @farcall.method()
    def block_in_call(self) -> None:
        """Waits for another call, in our code."""
        self.events.append("started")
        try:
            print("started", flush=True)
            wait_long.remote()
        except farcall.errors.InputCancellation:
            self.events.append("InputCancellation")
            raise

    @farcall.method()
    def spin(self) -> None:
        self.events.append("started")
        try:
            print("started", flush=True)
            while True:
                sum(range(100))
        except Exception:  # InputCancellation is none
            self.events.append("caught as Exception")

    @farcall.method()
    async def block_later(self) -> None:
        self.events.append("started")
        try:
            print("started", flush=True)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.events.append("CancelledError")
            raise

    @farcall.method()
    def ignore(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                print("started", flush=True)
                time.sleep(60)
            except BaseException:
                continue

    @farcall.method()
    def quick(self, x: Any = None) -> Any:
        return x

    @farcall.method()
    def report(self) -> tuple[str, list[str]]:
        events, self.events = self.events, []
        return IDENTITY, events


@app.function()
def wait_long() -> None:
    time.sleep(60)
