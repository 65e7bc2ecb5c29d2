"""A store in a directory of its own, driven from synchronous tests, with clocks that stand still."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from farcall.state import App, Call, StateStore

T = TypeVar("T")


class Store:
    """One store at a time over one directory. `run` runs a coroutine in the store's loop; `reopen` is a restart."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wall = 1_000_000_000.0
        self.uptime = 0.0
        self._runner = asyncio.Runner()
        self._runner.run(asyncio.sleep(0))
        self.state = self._open()

    def _open(self) -> StateStore:
        return StateStore(self.directory, now=lambda: self.wall, steady=lambda: self.uptime)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    def reopen(self) -> None:
        self.run(self.state.close())
        self.state = self._open()

    def spawn(self, call_id: str, *payloads: bytes, app_id: str = "ap-1") -> Call:
        return self.run(self.state.add_call(new_call(call_id, app_id), payloads))

    def add_inputs(self, call_id: str, inputs: list[bytes], first_index: int, app_id: str = "ap-1") -> list[int]:
        return self.run(self.state.add_inputs(new_call(call_id, app_id), inputs, first_index=first_index))[1]

    def add_app(self, app_id: str = "ap-1") -> App:
        return self.run(self.state.add_app(App(app_id=app_id, name="example", state="ephemeral", definition=b"d")))

    def pending(self, app_id: str | None = None) -> dict[str, list[int]]:
        """The unfinished inputs of each pending call, by call id."""

        async def read() -> dict[str, list[int]]:
            return {
                call.call_id: [found.index async for found in self.state.pending_inputs(call.call_id)]
                async for call in self.state.pending_calls(app_id)
            }

        return self.run(read())

    def payload_files(self) -> int:
        return len(list((self.directory / "payloads").iterdir()))

    def close(self) -> None:
        self.run(self.state.close())
        self._runner.close()


def new_call(call_id: str, app_id: str = "ap-1") -> Call:
    return Call(call_id=call_id, app_id=app_id, function_id="fu-1", function_name="f")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    opened.add_app()
    yield opened
    opened.close()
