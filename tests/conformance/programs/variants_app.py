"""What the tests of variants and of classes call."""

import asyncio
import os
import time
import uuid
from typing import Any

import farcall

app = farcall.App("variants", secrets=[farcall.Secret.from_dict({"OF_APP": "app", "BOTH": "app"})])
IDENTITY = uuid.uuid4().hex


@app.function(env={"OF_FUNCTION": "function"})
def where(name: str = "") -> tuple[str, str | None]:
    return IDENTITY, os.environ.get(name)


@app.function(timeout=30, retries=0)
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return IDENTITY


@app.function()
async def meet(count: int) -> bool:
    """Whether so many inputs run in this container at once."""
    global here
    here += 1
    end = time.monotonic() + 30
    while here < count and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return here >= count


here = 0
attempts = 0


@app.function()
def fail_at_first(times: int) -> int:
    global attempts
    attempts += 1
    if attempts <= times:
        raise ValueError(f"attempt {attempts}")
    return attempts


@app.function()
def count(n: int) -> Any:
    for i in range(n):
        yield i, IDENTITY


@app.function()
def double(xs: Any) -> Any:
    return [2 * x for x in xs] if isinstance(xs, list) else 2 * xs


@app.function()
def nested() -> tuple[str, str, str]:
    """A variant made in a container, used twice, and the function itself."""
    variant = where.with_options(env={"MADE_IN": "container"})
    first, value = variant.remote("MADE_IN")
    assert value == "container", value
    return first, where.with_options(env={"MADE_IN": "container"}).remote()[0], where.remote()[0]


@app.function()
def call_it(function: Any, *args: Any) -> Any:
    return function.remote(*args)


@app.function()
def steal() -> Any:
    """Asks for a stored secret that no function of this app has."""
    return where.with_options(secrets=[farcall.Secret.from_name("of-somebody-else")]).remote("KEY")


@app.cls(max_containers=1)
class Model:
    name: str = farcall.parameter(default="m")

    @farcall.enter()
    def begin(self) -> None:
        self.calls = 0

    @farcall.method()
    def identity(self) -> tuple[str, str]:
        return self.name, IDENTITY

    @farcall.method()
    def both(self) -> tuple[str, str]:
        """This container's, and that of another method of itself, called remotely (in a second container)."""
        return IDENTITY, self.identity.remote()[1]

    @farcall.method()
    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    @farcall.method()
    async def later(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return IDENTITY


@app.cls()
class Single:
    @farcall.method()
    def run(self, xs: Any) -> Any:
        return [(x, len(xs)) for x in xs]
