"""What the tests of calls call."""

import asyncio
import os
import time
import uuid
from typing import Any

import farcall

app = farcall.App("calls")
IDENTITY = uuid.uuid4().hex


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
async def double_later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@app.function()
def where() -> tuple[str, bool, int]:
    """Identity of the process, whether it is a local one, its parent's pid."""
    return IDENTITY, farcall.is_local(), os.getppid()


@app.function()
def ids() -> tuple[str | None, str | None]:
    return farcall.current_function_call_id(), farcall.current_input_id()


@app.function()
def count(n: int) -> Any:
    yield from range(n)


@app.function()
def fail(message: str) -> None:
    raise ValueError(message)


@app.function()
def sleep(seconds: float, result: Any = None) -> Any:
    time.sleep(seconds)
    return result


@app.cls(max_containers=1)
@farcall.concurrent(max_inputs=2)
class Door:
    """`wait` ends when somebody calls `open`."""

    @farcall.enter()
    async def begin(self) -> None:
        self.opened = asyncio.Event()

    @farcall.method()
    async def wait(self, result: Any) -> Any:
        await self.opened.wait()
        return result

    @farcall.method()
    async def open(self) -> None:
        self.opened.set()


@app.cls(max_containers=1)
class Gate:
    """One container at a time: `tries` counts the inputs that began in this one."""

    @farcall.enter()
    def begin(self) -> None:
        self.tries = 0

    @farcall.method()
    async def hold(self) -> None:
        self.tries += 1
        print("started", flush=True)
        await asyncio.Event().wait()

    @farcall.method()
    def identity(self) -> str:
        return IDENTITY


@app.function(serialized=True)
def by_value(x: int) -> int:
    return x + len(farcall.__name__)
