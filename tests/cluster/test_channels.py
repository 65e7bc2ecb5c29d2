"""A container that a worker has for its server, and the worker's own channel, without a server and a launcher."""

import asyncio
import os
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from farcall import errors
from farcall.cluster.agent import Session
from farcall.cluster.fetching import Fetching
from farcall.cluster.hosted import Hosted
from farcall.spec.function import FunctionSpec, Source
from farcall.wire import cluster
from farcall.wire.execs import ExecCommand
from farcall.wire.memory import to_memory
from farcall.worker.container import State

ASKED = cluster.StartContainer("ta-1", "ap-1", FunctionSpec("fu-1", "f", Source("m", "f"), ()), b"", None, (), ())


class End:
    """The server's end of a channel."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.buffered = 0

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        self.sent.put_nowait(message)

    def close(self) -> None: ...


class Agent:
    """A worker of which nothing is there but what a container asks for."""

    def __init__(self) -> None:
        self.name = "w1"
        self.lease = SimpleNamespace(is_open=True)
        self.store = SimpleNamespace(lease=lambda _: nullcontext(self.lease))
        self.container = SimpleNamespace(container_id="ta-1", state=State.STARTING, mounted=None, on_mounted=None)
        self.worker = SimpleNamespace(start=lambda *_: self.container, start_exec=self.start_exec)
        self.tasks: list[asyncio.Task[Any]] = []

    async def given(self, lease: Any, function: Any, asked: Any) -> tuple[Any, Any]:
        return function, None

    async def start_exec(self, *_: Any) -> Any:
        raise OSError("no descriptor is left")

    def spawn(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def forget(self, hosted: Any) -> None: ...


def hosted(test: Callable[[Agent, End, Hosted], Any]) -> None:
    async def main() -> None:
        agent, end = Agent(), End()
        await asyncio.wait_for(test(agent, end, Hosted(agent, end, ASKED, ())), 60)  # type: ignore[arg-type]

    asyncio.run(main())


def test_the_lease_of_a_start_ends_as_soon_as_the_container_has_its_own() -> None:
    """Nobody looks again and again whether it has."""

    async def test(agent: Agent, end: End, one: Hosted) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        assert not one._starting.done()
        agent.container.mounted = object()
        agent.container.on_mounted()
        for _ in range(5):
            await asyncio.sleep(0)
        assert one._starting.done()

    hosted(test)


def test_a_command_that_cannot_be_run_there_has_an_end() -> None:
    async def test(agent: Agent, end: End, one: Hosted) -> None:
        one._take(ExecCommand(7, "ta-1", ["true"]), ())
        told = await end.sent.get()
        assert isinstance(told, cluster.ExecEnded) and told.seq == 7
        assert told.failure is not None and told.failure.code == errors.InternalError.code
        assert "no descriptor is left" in told.failure.message and "worker w1" in told.failure.message
        agent.container.on_mounted()

    hosted(test)


def test_descriptors_that_come_where_none_has_a_place_are_closed() -> None:
    async def main() -> None:
        agent: Any = SimpleNamespace(loop=asyncio.get_running_loop(), session_ended=lambda _: None)
        session = Session(agent, b"s" * 16, 60.0)
        end: Any = SimpleNamespace(send=lambda _: None)
        for message in (cluster.Control(), cluster.Heartbeat(1)):
            fds = (to_memory(b"data"), to_memory(b"more"))
            try:
                session._opened(end, message, fds)
            except errors.ProtocolError:
                assert isinstance(message, cluster.Heartbeat)
            assert not any(map(is_open, fds))
        fds = (to_memory(b"data"),)
        end.on_message(cluster.Lease(1), fds)
        assert not any(map(is_open, fds))
        session.close()

    asyncio.run(main())


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_image_whose_rest_was_cleared_is_completed_again() -> None:
    """A completion that came to its end leaves room for the next."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fetched: list[str] = []
        one: Any = object.__new__(Fetching)
        one._loop = loop
        one._store = SimpleNamespace(lease=lambda _: nullcontext(None))
        one._room = SimpleNamespace(lacking=lambda _: 0, has=lambda _: True)
        one._images = SimpleNamespace(tree=lambda _: None, fetch_tree=lambda _, tree_id: fetched.append(tree_id))
        for _ in range(2):
            one._completing = getattr(one, "_completing", {})
            one._complete_later("tree")
            one._completing["tree"].cancel()  # nobody waits for that here
            await loop.run_in_executor(None, one._complete, "tree")
            await asyncio.sleep(0)
            assert not one._completing
        assert fetched == ["tree", "tree"]

    asyncio.run(main())
