"""A worker on another machine, as the server sees it: its link, its lease, and its containers."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from farcall import errors
from farcall.cluster.ends import LocalEnd
from farcall.cluster.mirror import Mirror
from farcall.launcher.messages import Usage
from farcall.link.relay import Relay, Stream
from farcall.spec.container import Interpreter
from farcall.spec.function import FunctionSpec
from farcall.wire import cluster
from farcall.wire.descriptors import close_all
from farcall.worker.container import Assignment, Container, End
from farcall.worker.worker import Given

if TYPE_CHECKING:
    from farcall.cluster.contents import Contents
    from farcall.wire.workers import Attach
    from farcall.worker.container import Owner

REACHABLE = 0.5  # of its lease: a worker that has been silent for longer is given nothing new
UNSENT_MESSAGES = 10_000  # that may wait for it on its own channel
UNSENT_PART = 4  # this part of the server's memory may wait for it to take: answers, and what it has not confirmed
ARRIVING_PART = 2  # this part may be what has come from it of messages that are not whole
_LEAST = 1 << 30  # bytes, where a machine has little memory


class Host(Protocol):
    """The server that a machine works for."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def now(self) -> float:
        """Monotonic seconds, of the clock for what happens to apps."""
        ...

    async def given(self, function: FunctionSpec) -> tuple[Given, dict[str, str]]:
        """What a container of a function that starts now is made from, and its whole environment. Raises what keeps it
        from being made."""
        ...

    def on_text(self, container: Container, stream: str, text: str, of: Assignment | None) -> None:
        """Something that a container wrote past Python, while it ran that input where this is known."""
        ...

    def on_joined(self, machine: Machine, places: list[str]) -> None:
        """It can have containers. `places` are the words by which functions can ask for it."""
        ...

    def on_leaving(self, machine: Machine) -> None:
        """It is to have no further ones."""
        ...

    def on_lost(self, machine: Machine) -> None:
        """It is gone; the owners of its containers are told next."""
        ...


class Known(NamedTuple):
    """Who a worker is, as its certificate says."""

    worker_id: str
    name: str


class Machine:
    """One worker for as long as its containers live: over all connections of one session."""

    def __init__(
        self, host: Host, known: Known, attach: Attach, address: str, lease: float, contents: Contents
    ) -> None:
        self.worker_id, self.name = known
        self.session = attach.session
        self.attach = attach
        self.address = address
        self.lease = lease
        self.loop = host.loop
        self.now = host.now
        self.on_text = host.on_text
        self.is_draining = False
        self.is_leaving = False  # it said so: it has no further containers, whatever it is told
        self.clock_offset = 0.0
        self._fault = ""
        self._host = host
        self._contents = contents
        self._relay = Relay(attach.session)
        self._containers: dict[str, Mirror] = {}
        self._heard = self.loop.time()
        self._measuring: dict[int, asyncio.Future[dict[str, Usage]]] = {}
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stream: asyncio.Task[None] | None = None
        self._log = logging.getLogger("farcall.cluster")
        self._control = LocalEnd(cluster.OfWorker)
        self._control.on_message = self._told
        self._control.on_refusals = self.misbehaves
        self._relay.open(self._control.connect)
        self._control.send(cluster.Control())
        self._content = content = LocalEnd(cluster.OfWorker)
        content.on_message = lambda message, fds: self._contents.answer(self, content, message, fds)
        content.on_resume = lambda: self._contents.go_on(self, content)
        content.on_refusals = self.misbehaves
        self._relay.open(content.connect)
        content.send(cluster.Contents())

    # --- the connection

    @property
    def is_linked(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._relay.is_linked

    @property
    def is_reachable(self) -> bool:
        """Whether what it is sent most likely arrives soon."""
        return self._relay.is_linked and self.silent_for() < self.lease * REACHABLE

    def silent_for(self) -> float:
        """Seconds since it was last heard of."""
        return self.loop.time() - self._heard

    def misbehaves(self, why: str) -> None:
        """It does what no worker does: it is given up soon."""
        self._fault = self._fault or why

    @property
    def fault(self) -> str:
        """Why it cannot be kept: it would take the server's memory, and all other workers with it. "" as a rule."""
        if self._fault:
            return self._fault
        if self._control.waiting > UNSENT_MESSAGES:
            return f"it does not take what it is sent: {self._control.waiting:,} answers wait for it"
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if (unsent := self._relay.unsent) > max(_LEAST, memory // UNSENT_PART):
            return f"it does not take what it is sent: {unsent // 2**20:,} MiB wait for it"
        if (arriving := self._relay.arriving) > max(_LEAST, memory // ARRIVING_PART):
            return f"it sends more than this machine has room for: {arriving // 2**20:,} MiB of values that have no end"
        return ""

    async def carry(self, stream: Stream) -> None:
        """Speaks with it over this connection, until that ends, in place of an earlier one."""
        before, self._stream = self._stream, asyncio.current_task()
        if before is not None and not before.done():
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        await self._relay.run(stream)

    def disconnect(self) -> None:
        """Ends its connection; it may come back."""
        if self._stream is not None:
            self._stream.cancel()

    def say_goodbye(self) -> None:
        """Its containers are to end, whether it answers or not."""
        self._control.send(cluster.Goodbye())

    async def said_goodbye(self) -> None:
        """Returns when that has left, where there is a connection."""
        await self._relay.confirmed()

    def lost(self, why: str) -> None:
        """Its lease is over, or it said that it is: its containers are gone, or are taken for it."""
        self.disconnect()
        for task in self._tasks:
            task.cancel()
        for mirror in self.containers:
            mirror.gone(End(None, why, lost=True))
        self._contents.leave(self)
        self._relay.close()
        for future in self._measuring.values():
            if not future.done():
                future.set_result({})

    def moved(self, attach: Attach, address: str) -> None:
        """It has connected again, maybe from somewhere else."""
        before = self.address, self.attach.peer_port
        self.attach, self.address = attach, address
        if before != (address, attach.peer_port):
            self._contents.sharers.moved(self)

    def tell_sharers(self, message: cluster.Sharers) -> None:
        """Which workers may have a tree that it may have."""
        self._content.send(message)

    # --- what it tells

    def _told(self, message: Any, fds: tuple[int, ...]) -> None:
        close_all(fds)
        match message:
            case cluster.Heartbeat(number=number):
                self._heard = self.loop.time()
                self._control.send(cluster.Lease(number))
            case cluster.Measured(seq=seq, usages=usages):
                if (future := self._measuring.pop(seq, None)) is not None and not future.done():
                    future.set_result({one: Usage(*usage) for one, usage in usages.items()})
            case cluster.Leaving():
                self.is_leaving = True
                self._host.on_leaving(self)
            case _:
                raise errors.ProtocolError(
                    f"a {type(message).__name__} has no place on worker {self.name}'s own channel"
                )

    # --- containers

    @property
    def containers(self) -> list[Mirror]:
        """Those that are not gone."""
        return list(self._containers.values())

    def start(
        self,
        container_id: str,
        app_id: str,
        function: FunctionSpec,
        params: bytes,
        owner: Owner,
        gpus: tuple[int, ...] = (),
    ) -> Container:
        """Makes a container there: see `Worker.start`."""
        mirror = Mirror(self, container_id, app_id, function, params, owner, self.now(), gpus)
        self._containers[container_id] = mirror
        self._spawn(self._start(mirror))
        return mirror

    async def _start(self, mirror: Mirror) -> None:
        try:
            given, environment = await self._host.given(mirror.function)
            if mirror.doomed:
                return
            trees = [tree.tree_id for tree in mirror.function.trees]
            trees += [volume.version for volume in given.volumes]
            self._contents.allow(self, mirror.container_id, trees, given.root.tree if given.root is not None else "")
        except errors.FarcallError as error:
            mirror.gone(End(None, "", lost=False, error=error))
            return
        except Exception as error:  # or its pool would wait for it for ever
            self._log.exception("container %s was not started", mirror.container_id)
            told = errors.InternalError(f"{error!r}; see `farcall server logs`")
            mirror.gone(End(None, "", lost=False, error=told))
            return
        self._relay.open(mirror.way.connect)
        mirror.start(given, environment)

    def forget(self, mirror: Mirror) -> bool:
        """A container is gone; whether that is new."""
        self._contents.forbid(self, mirror.container_id)
        return self._containers.pop(mirror.container_id, None) is not None

    def kill(self, container: Container, reason: str) -> None:
        """Ends a container."""
        container.kill(reason)

    def signal(self, container: Container, number: int) -> None:
        """Its own worker signals it."""

    def prepare(self, interpreter: Interpreter) -> None:
        """Containers of this interpreter may soon be wanted there."""
        self._control.send(cluster.Prepare(interpreter))

    async def measure(self) -> dict[str, Usage]:
        """What its containers use, by id."""
        self._seq += 1
        future = self._measuring[self._seq] = self.loop.create_future()
        self._control.send(cluster.Measure(self._seq))
        try:
            return await future
        finally:
            self._measuring.pop(self._seq, None)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
