"""Enter hooks before `.local`: once, and before every method."""

import asyncio
import threading
import time
from typing import Any

import pytest

import farcall

app = farcall.App("entering")


@app.cls(serialized=True)
class Slow:
    """Its hooks take a while, and note each step."""

    fails: int = farcall.parameter(default=0)

    @farcall.enter()
    def first(self) -> None:
        self.events = ["first"]
        time.sleep(0.05)

    @farcall.enter()
    async def second(self) -> None:
        failures.append(None)
        if len(failures) <= self.fails:
            raise ValueError("not yet")
        await asyncio.sleep(0.05)
        self.events.append("second")
        self.events.append(self.plain.local())
        self.events.append(await self.later.local())

    @farcall.method()
    def plain(self) -> str:
        return f"plain after {len(self.events)}"

    @farcall.method()
    async def later(self) -> str:
        return f"later after {len(self.events)}"

    @farcall.method()
    async def stream(self) -> Any:
        yield len(self.events)


failures: list[None] = []
ALL = ["first", "second", "plain after 2", "later after 3"]


@pytest.fixture(autouse=True)
def nothing_has_failed() -> None:
    failures.clear()


def test_tasks_wait_for_the_hooks_that_one_runs() -> None:
    slow = Slow()

    async def main() -> list[Any]:
        return await asyncio.gather(*(slow.later.local() for _ in range(5)), anext(slow.stream.local()))

    assert asyncio.run(main()) == ["later after 4"] * 5 + [4]
    assert slow.events == ALL


def test_threads_wait_for_the_hooks_that_one_runs() -> None:
    slow = Slow()
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(slow.plain.local())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["plain after 4"] * 5
    assert slow.events == ALL


def test_hooks_that_failed_run_again() -> None:
    slow = Slow(fails=2)
    with pytest.raises(ValueError, match="not yet"):
        slow.plain.local()
    with pytest.raises(ValueError, match="not yet"):
        asyncio.run(slow.later.local())
    assert slow.plain.local() == "plain after 4"


def test_a_plain_method_in_asynchronous_code() -> None:
    """An asynchronous hook has its own loop, as the one that runs cannot wait."""

    async def main() -> str:
        return Slow().plain.local()

    assert asyncio.run(main()) == "plain after 4"
