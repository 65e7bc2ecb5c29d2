"""Leases against an injected clock: whatever is cut, and when, a worker ends its containers before its server counts
them as lost."""

import asyncio
import random
import selectors
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farcall import errors
from farcall.cluster.agent import Session
from farcall.cluster.listener import Listener
from farcall.cluster.machine import Machine
from farcall.content.store import Store
from farcall.version import __version__
from farcall.wire.messages import PROTOCOL_VERSION
from farcall.wire.workers import Attach, Offer

LEASE = 10.0
DELAY = 0.01  # seconds that the line takes
OFFER = Offer(cpu=2000, memory=1024, disk=1024)


class Clock(selectors.DefaultSelector):
    """Time that passes only where nothing is left to do, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits for ever"
            self.now += timeout
        return found


class TimelessLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is injected."""

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class Line:
    """A connection that keeps what it cannot carry, as the kernel does, until it can."""

    def __init__(self) -> None:
        self.passes = {"server": True, "worker": True}  # what this end sends
        self.kept: dict[str, list[bytes]] = {"server": [], "worker": []}
        self.ends = {name: End(self, name) for name in self.kept}

    def send(self, sender: str, data: bytes) -> None:
        self.kept[sender].append(data)
        asyncio.get_running_loop().call_later(DELAY, self.pump)

    def pump(self) -> None:
        for sender, receiver in (("server", "worker"), ("worker", "server")):
            while self.passes[sender] and self.kept[sender]:
                self.ends[receiver].arrived.put_nowait(self.kept[sender].pop(0))

    def cut(self, *, to_server: bool, from_server: bool) -> None:
        self.passes = {"worker": not to_server, "server": not from_server}

    def mend(self) -> None:
        self.cut(to_server=False, from_server=False)
        self.pump()

    @property
    def is_whole(self) -> bool:
        return all(self.passes.values())


class End:
    """One end of it, as a link's stream."""

    def __init__(self, line: Line, name: str) -> None:
        self.line, self.name = line, name
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        while True:
            take(await self.arrived.get())

    def write(self, data: bytes) -> None:
        self.line.send(self.name, data)

    def waiting(self) -> int:
        return 0

    async def drain(self) -> None: ...


class Ending:
    """A container of the worker's, that notes when it is ended."""

    def __init__(self) -> None:
        self.killed_at = 0.0

    def kill(self, reason: str) -> None:
        self.killed_at = asyncio.get_running_loop().time()


class Both:
    """A server and its worker, with a line between them that is made again where it was given up and can be."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.store = Store(folder / "content")
        self.listener = Listener(self, "sr-test", folder / "cluster", self.store, LEASE)  # type: ignore[arg-type]
        self.name = f"w{len(self.listener.registry.workers)}"
        self.worker = self.listener.registry.make(self.name, 0.0)
        self.listener.registry.add(self.worker)
        attach = Attach(PROTOCOL_VERSION, __version__, b"s" * 16, False, self.name, "", {}, OFFER, 0.0)
        self.machine: Machine = self.listener._attach(attach, self.worker.worker_id, "10.0.0.2")
        self.session = Session(self, attach.session, LEASE)  # type: ignore[arg-type]
        self.container = Ending()
        self.session.containers["ta-1"] = self.container  # type: ignore[assignment]
        self.lost_at = 0.0
        self.line = Line()
        self._tasks: set[asyncio.Future[None]] = set()
        self.listener._look()
        self._connecting = asyncio.ensure_future(self._stay_connected())

    # of the server

    def on_text(self, *_: Any) -> None: ...

    def on_joined(self, machine: Machine, places: list[str]) -> None: ...

    def on_lost(self, machine: Machine) -> None:
        self.lost_at = self.loop.time()

    # of the worker

    def session_ended(self, session: Session) -> None: ...

    async def _stay_connected(self) -> None:
        while not self.session.is_over:
            if self.line.is_whole:
                serving = asyncio.ensure_future(self.machine.carry(self.line.ends["server"]))
                self._tasks.add(serving)
                await self.session.carry(self.line.ends["worker"])
                whole, self.line = self.line, Line()
                self.line.passes = whole.passes
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        self._connecting.cancel()
        self.session.close()
        await self.listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._connecting, *self._tasks, return_exceptions=True)


def played(folder: Path, play: Callable[[Both], Any]) -> tuple[float, float]:
    """When the worker ended its container, and when the server counted it as lost; 0.0 where that did not happen."""

    async def main() -> tuple[float, float]:
        both = Both(folder)
        try:
            await asyncio.sleep(3 * LEASE)
            assert not both.session.is_over and not both.lost_at, "it is lost without a reason"
            await play(both)
            return both.container.killed_at, both.lost_at
        finally:
            await both.close()

    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        return runner.run(main())


@pytest.mark.parametrize(("to_server", "from_server"), [(True, True), (True, False), (False, True)])
def test_the_worker_ends_its_containers_first(
    tmp_path: Path, to_server: bool, from_server: bool, rng: random.Random
) -> None:
    """By a tenth of the lease at least, whenever in a heartbeat's interval the line is cut."""
    for _ in range(6):
        cut_at = 0.0

        async def play(both: Both) -> None:
            nonlocal cut_at
            await asyncio.sleep(rng.uniform(0.0, LEASE / 5))
            cut_at = both.loop.time()
            both.line.cut(to_server=to_server, from_server=from_server)
            await asyncio.sleep(3 * LEASE)

        ended, lost = played(tmp_path, play)
        assert cut_at < ended, "the container runs on"
        assert ended + LEASE / 10 < lost < cut_at + 1.5 * LEASE


def test_a_cut_of_less_than_the_lease_ends_nothing(tmp_path: Path, rng: random.Random) -> None:
    for _ in range(6):

        async def play(both: Both) -> None:
            await asyncio.sleep(rng.uniform(0.0, LEASE / 5))
            both.line.cut(to_server=rng.random() < 0.7, from_server=rng.random() < 0.7)
            await asyncio.sleep(rng.uniform(0.0, LEASE / 2))
            both.line.mend()
            await asyncio.sleep(3 * LEASE)

        assert played(tmp_path, play) == (0.0, 0.0)


def test_a_worker_whose_answers_are_late_counts_from_when_it_asked(tmp_path: Path) -> None:
    """An answer that was under way for long says nothing about now."""

    async def play(both: Both) -> None:
        both.line.cut(to_server=False, from_server=True)
        await asyncio.sleep(LEASE * 0.35)
        both.line.mend()  # the answers to what it asked since then all come at once
        both.line.cut(to_server=True, from_server=True)
        await asyncio.sleep(3 * LEASE)

    ended, lost = played(tmp_path, play)
    assert 0 < ended < lost


def test_a_lease_that_is_over_is_not_taken_up_again(tmp_path: Path) -> None:
    async def play(both: Both) -> None:
        both.line.cut(to_server=True, from_server=True)
        await asyncio.sleep(3 * LEASE)
        resumed = Attach(PROTOCOL_VERSION, __version__, both.session.id, True, both.name, "", {}, OFFER, 0.0)
        with pytest.raises(errors.ConnectionLostError, match="over"):
            both.listener._attach(resumed, both.worker.worker_id, "10.0.0.2")

    played(tmp_path, play)
