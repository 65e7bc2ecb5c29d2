"""What the tests of classes call."""

import asyncio
import threading
import time
import uuid
from typing import Any

import farcall

app = farcall.App("classes")
IDENTITY = uuid.uuid4().hex


class Base:
    events: list[str]

    @farcall.enter(snap=True)
    def make(self) -> None:
        self.events = ["base snap"]

    @farcall.enter()
    def begin(self) -> None:
        self.events.append("base enter")

    @farcall.method()
    def inherited(self) -> list[str]:
        return self.events

    @farcall.method()
    def replaced(self) -> str:
        return "base"

    @farcall.exit()
    def end(self) -> None:
        print("base exit", flush=True)


class Middle(Base):
    kind: str = farcall.parameter(default="middle")

    def replaced(self) -> str:  # type: ignore[override]
        return "middle"

    @farcall.method()
    async def added(self) -> str:
        await asyncio.sleep(0)
        return self.kind


@app.cls(max_containers=1)
class Derived(Middle):
    size: int = farcall.parameter(default=3)

    @farcall.enter()
    def begin(self) -> None:
        """Takes the place of the base class's hook."""
        self.events.append(f"derived enter {self.size}")

    @farcall.enter(snap=True)
    async def make_more(self) -> None:
        await asyncio.sleep(0)
        self.events.append("derived snap")


@app.cls()
class Parameters:
    text: str = farcall.parameter(default="")
    number: int = farcall.parameter(default=0)
    data: bytes = farcall.parameter(default=b"")
    flag: bool = farcall.parameter(default=False)
    noted: int = farcall.parameter(init=False, default=5)

    @farcall.method()
    def values(self) -> tuple[Any, ...]:
        return self.text, self.number, self.data, self.flag, self.noted

    @farcall.method()
    def identity(self) -> str:
        return IDENTITY


@app.cls()
class WithInit:
    def __init__(self, items: Any, *, scale: float = 1.0) -> None:
        self.items, self.scale = items, scale

    @farcall.method()
    def total(self) -> tuple[float, str]:
        return sum(self.items) * self.scale, IDENTITY


@app.cls()
class FailsToEnter:
    how: str = farcall.parameter()

    @farcall.enter()
    def begin(self) -> None:
        if self.how == "raise":
            raise RuntimeError("no model here")
        if self.how == "exit":
            raise SystemExit(3)

    @farcall.enter()
    async def begin_later(self) -> None:
        if self.how == "later":
            raise LookupError("no connection")

    @farcall.method()
    def run(self) -> None: ...


@app.cls(startup_timeout=1, timeout=60)
@farcall.concurrent(max_inputs=4)
class HangsToEnter:
    how: str = farcall.parameter()

    @farcall.enter()
    def begin(self) -> None:
        print("enters", self.how)
        if self.how == "sync":
            time.sleep(60)

    @farcall.enter()
    async def begin_later(self) -> None:
        if self.how == "async":
            await asyncio.sleep(60)

    @farcall.method()
    def run(self) -> None: ...


@app.cls()
@farcall.concurrent(max_inputs=3)
class Entered:
    """Its inputs come all at once, when there is no container yet."""

    @farcall.enter()
    async def begin(self) -> None:
        self.entered = 0
        await asyncio.sleep(0.2)
        self.entered += 1

    @farcall.method()
    def plain(self) -> tuple[int, bool]:
        return self.entered, threading.current_thread() is threading.main_thread()

    @farcall.method()
    async def later(self) -> int:
        return self.entered
