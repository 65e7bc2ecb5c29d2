"""The worker's side: this machine's containers, for a server elsewhere, for as long as its lease holds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors, interpreters
from farcall.cluster.ends import LocalEnd
from farcall.cluster.fetching import Fetching
from farcall.cluster.hosted import Hosted, Refused
from farcall.cluster.runners import runner_for
from farcall.content.room import Room
from farcall.link.relay import Relay, Stream
from farcall.wire import cluster
from farcall.wire.descriptors import close_all
from farcall.wire.lingering import Lingering
from farcall.worker.filesystems import Filesystems, Root
from farcall.worker.worker import Given, Worker

if TYPE_CHECKING:
    from farcall.cluster.sharing import Sharing
    from farcall.content.lease import Lease
    from farcall.content.store import Store
    from farcall.link.channel import Connect
    from farcall.spec.container import Interpreter
    from farcall.spec.function import FunctionSpec
    from farcall.worker.container import Container
    from farcall.worker.gpus import Gpus

BEATS = 10  # heartbeats in a lease
MARGIN = 0.2  # of a lease: containers are ended so long before the server counts them as lost
SILENT = 0.4  # of a lease without an answer, after which a connection is taken for cut
ALONE_SECONDS = 0.5  # that containers may outlive a worker that was killed: nobody will take them up
_PROBES = 64  # interpreters that have been looked at


class Session:
    """The containers that one lease is for. They outlive a connection that is cut, and end with the lease."""

    def __init__(self, agent: Agent, session_id: bytes, lease: float) -> None:
        self.id = session_id
        self.lease = lease
        self.is_over = False
        self.containers: dict[str, Hosted] = {}
        self.fetching: Fetching | None = None
        self.answered_at = agent.loop.time()  # when the heartbeat was sent that was answered last
        self._agent = agent
        self._relay = Relay(self.id, self._dial)
        self._control: LocalEnd | None = None
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._number = 0
        self.heard_at = self.answered_at  # or when this connection began
        self._beating = agent.loop.call_later(lease / BEATS, self._beat)

    @property
    def is_linked(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._relay.is_linked

    async def carry(self, stream: Stream) -> None:
        """Speaks with the server over this connection, until it ends, or nothing comes from it any more."""
        carrying = asyncio.ensure_future(self._relay.run(stream))
        self.heard_at = self._agent.loop.time()
        try:
            while not self.is_over and not carrying.done():
                await asyncio.wait([carrying], timeout=self.lease / BEATS)
                if self._agent.loop.time() - max(self.answered_at, self.heard_at) > self.lease * SILENT:
                    logging.getLogger("farcall.cluster").warning("the server is silent: the connection is given up")
                    return
            if carrying.done():
                carrying.result()
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)

    def leave(self) -> None:
        """Asks for nothing further to be given to this machine."""
        if self._control is not None:
            self._control.send(cluster.Leaving())

    async def finish(self) -> None:
        """Returns when no container is left, and the server has confirmed all that they had to say; or when the lease
        is over."""
        await self._agent.wait_empty()
        delivering = asyncio.ensure_future(self._relay.deliver_closed())
        try:
            while not self.is_over and not delivering.done():
                await asyncio.wait([delivering], timeout=self.lease / BEATS)
        finally:
            delivering.cancel()

    def end(self, why: str) -> None:
        """The lease is over: what runs is ended."""
        if self.is_over:
            return
        self.is_over = True
        self._beating.cancel()
        if self.containers:
            logging.getLogger("farcall.cluster").warning("%d containers are ended: %s", len(self.containers), why)
        for hosted in list(self.containers.values()):
            hosted.kill(why)
        if self.fetching is not None:
            self.fetching.close()
        self._agent.session_ended(self)
        self._agent.loop.call_soon(self._relay.close)

    def close(self) -> None:
        """Lets go of the channels."""
        self.end("the worker ends")
        self._relay.close()

    def _beat(self) -> None:
        now = self._agent.loop.time()
        if now - self.answered_at > self.lease * (1 - MARGIN):
            self.end(f"the server has not answered for {now - self.answered_at:.1f} s, and counts them as lost soon")
            return
        self._beating = self._agent.loop.call_later(self.lease / BEATS, self._beat)
        if self._control is not None and self._relay.is_linked:
            self._number += 1
            self._sent[self._number] = now
            self._control.send(cluster.Heartbeat(self._number))

    # --- channels

    def _dial(self) -> Connect:
        end = LocalEnd(cluster.ToWorker)
        end.on_message = lambda message, fds: self._opened(end, message, fds)
        return end.connect

    def _opened(self, end: LocalEnd, message: Any, fds: tuple[int, ...]) -> None:
        match message:
            case cluster.Control():
                close_all(fds)
                self._control = end
                end.on_message = self._told
                self._beat_now()
            case cluster.Contents():
                close_all(fds)
                self.fetching = Fetching(self._agent.store, self._agent.room, end, self._agent.sharing)
                # As where there was no descriptor for what came. Only a new lease has another channel: in this one
                # every container would be refused.
                end.on_close = lambda: self.end("the channel for content has ended")
            case cluster.StartContainer():
                try:
                    self.containers[message.container_id] = Hosted(self._agent, end, message, fds)
                except Exception:
                    end.close()  # the server takes it for lost; else it would wait
                    raise
            case _:
                close_all(fds)
                raise errors.ProtocolError(f"no channel begins with a {type(message).__name__}")

    def _beat_now(self) -> None:
        self._beating.cancel()
        self._beat()

    def _told(self, message: Any, fds: tuple[int, ...]) -> None:
        close_all(fds)
        match message:
            case cluster.Lease(number=number):
                while self._sent and next(iter(self._sent)) <= number:
                    _, self.answered_at = self._sent.popitem(last=False)
            case cluster.Measure(seq=seq):
                self._agent.spawn(self._measure(seq))
            case cluster.Prepare(interpreter=interpreter):
                self._agent.prepare(interpreter)
            case cluster.Goodbye():
                self.end("the server has ended, or wants this worker no more")
            case _:
                raise errors.ProtocolError(f"a {type(message).__name__} has no place here")

    async def _measure(self, seq: int) -> None:
        try:
            found = await self._agent.worker.measure()
        except errors.FarcallError:
            found = {}
        usages = {one: (usage.cpu, usage.memory, usage.processes) for one, usage in found.items()}
        if self._control is not None:
            self._control.send(cluster.Measured(seq, usages))


class Agent:
    """This machine, as a worker."""

    def __init__(
        self, name: str, server_id: str, store: Store, launcher_state: Path, gpus: Gpus, sharing: Sharing
    ) -> None:
        self.name = name
        self.store = store
        self.room = Room(store, f"worker {name}")
        self.sharing = sharing
        self.loop = asyncio.get_running_loop()
        self.lingering = Lingering(self.loop)
        self.worker = Worker(launcher_state, server_id, self._on_text, Filesystems(store), ALONE_SECONDS)
        self.worker.gpus = gpus
        self.worker.on_tick = self._tick
        self.now = self.worker.clock.now
        self.session: Session | None = None
        self._known: dict[Interpreter, Interpreter] = {}
        self._emptied = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.spawn(self._tidy(self.room.forget_old))

    def begin(self, lease: float, session_id: bytes) -> Session:
        """A new lease, for no containers yet."""
        self.session = Session(self, session_id, lease)
        return self.session

    def session_ended(self, session: Session) -> None:
        """Its containers are being ended."""
        if self.session is session:
            self.session = None

    def forget(self, hosted: Hosted) -> None:
        """A container is gone."""
        if self.session is not None:
            self.session.containers.pop(hosted.container_id, None)
        self._emptied.set()

    async def wait_empty(self) -> None:
        """Returns when this machine has no containers."""
        while self.session is not None and self.session.containers:
            self._emptied.clear()
            await self._emptied.wait()

    def prepare(self, interpreter: Interpreter) -> None:
        """Containers of this interpreter may soon be wanted."""

        async def prepare() -> None:
            try:
                self.worker.prepare(await self._own(interpreter, "it"))
            except errors.FarcallError:
                pass  # who starts one will be told

        self.spawn(prepare())

    async def given(
        self, lease: Lease, function: FunctionSpec, asked: cluster.StartContainer
    ) -> tuple[FunctionSpec, Given]:
        """What a container is made from, all of it here and kept by the lease. Raises Refused for what this machine
        cannot run, and what keeps content from coming."""
        image = asked.image
        session = self.session
        if session is None or session.fetching is None:
            raise Refused(f"worker {self.name} has no lease")
        root: Root | None = None
        trees = [tree.tree_id for tree in function.trees] + [volume.version for volume in asked.volumes]
        if image is not None:
            runner = await runner_for(image.interpreter)
            own = msgspec.structs.replace(image.interpreter, runner_path=str(runner))
            root = Root(image.tree, own, image.env, image.workdir, image.entrypoint)
        elif function.interpreter is not None:
            own = await self._own(function.interpreter, function.name)
            function = msgspec.structs.replace(function, interpreter=own)
            needed = [bind.source for bind in function.binds if not bind.optional]
            if lacking := _first_missing(needed):
                raise Refused(f"{function.name} needs {lacking}, which worker {self.name} does not have")
        await session.fetching.need(lease, trees, function.name, image.tree if image is not None else "")
        return function, Given(root, asked.volumes)

    async def _own(self, wanted: Interpreter, whose: str) -> Interpreter:
        """The same interpreter, as this machine has it. Raises Refused where it does not."""
        if (known := self._known.get(wanted)) is not None and not _first_missing([known.executable]):
            return known
        if lacking := _first_missing([wanted.executable, *wanted.paths]):
            raise Refused(
                f"{whose} has no image and runs with {wanted.executable}; worker {self.name} has no {lacking}: give it "
                "an image"
            )
        found = await self.loop.run_in_executor(None, interpreters.probe, wanted.executable)
        if (found.version, found.tag) != (wanted.version, wanted.tag):
            raise Refused(
                f"{whose} has no image and runs with Python {wanted.version}; {wanted.executable} of worker "
                f"{self.name} is {found.version}: give it an image"
            )
        while len(self._known) >= _PROBES:
            self._known.pop(next(iter(self._known)))
        own = self._known[wanted] = msgspec.structs.replace(wanted, runner_path=found.runner_path)
        return own

    def make_room(self) -> None:
        """A container could not be made for want of room: some is made for the next, if there is any to be made."""
        self.spawn(self._tidy(lambda: self.room.make(0, "containers")))

    async def _tidy(self, how: Callable[[], None]) -> None:
        try:
            await self.loop.run_in_executor(None, how)
        except errors.FarcallError as error:
            logging.getLogger("farcall.cluster").warning("%s", error)

    async def close(self) -> None:
        """Ends all that is here."""
        if self.session is not None:
            self.session.close()
        await self.worker.close()
        self.sharing.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work` in the background; what it raises is logged."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logging.getLogger("farcall.cluster").error("a background task failed", exc_info=task.exception())

    def _hosted(self) -> list[Hosted]:
        return [] if self.session is None else list(self.session.containers.values())

    def _tick(self) -> None:
        now = self.now()
        for hosted in self._hosted():
            hosted.tick(now)

    def _on_text(self, container: Container, stream: str, text: str) -> None:
        if isinstance(container.owner, Hosted):
            container.owner.on_text(container, stream, text)


def _first_missing(paths: Iterable[str]) -> str:
    return next((path for path in paths if not os.path.exists(path)), "")
