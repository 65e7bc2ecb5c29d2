"""The workers of a server: its own, and those of other machines that have joined."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.server import capacity
from farcall.server.fleet import HERE
from farcall.server.scaler import EXIT_GRACE
from farcall.version import __version__
from farcall.wire.workers import (
    CreateWorkerToken,
    DrainWorker,
    ListWorkers,
    ListWorkerTokens,
    RemoveWorker,
    RevokeWorkerToken,
    WorkerListing,
    WorkerToken,
)
from farcall.worker.container import Assignment, Container, State
from farcall.worker.exec_streams import ExecStreams
from farcall.worker.worker import TICK_SECONDS, Given

if TYPE_CHECKING:
    from farcall.cluster.listener import Listener
    from farcall.cluster.machine import Machine
    from farcall.cluster.mirror import Mirror
    from farcall.content.store import Store
    from farcall.launcher.messages import Usage
    from farcall.server.demand import Placement
    from farcall.server.execs import Running
    from farcall.server.pool import Pool
    from farcall.server.server import Server
    from farcall.server.session import Session
    from farcall.settings import Settings
    from farcall.spec.container import Interpreter
    from farcall.spec.function import FunctionSpec

Request = CreateWorkerToken | ListWorkerTokens | RevokeWorkerToken | ListWorkers | DrainWorker | RemoveWorker

MEASURE_SECONDS = 2.0  # for a worker to say what its containers use
_LOOK_SECONDS = 0.05
_encode = msgspec.msgpack.Encoder().encode


class Workers:
    """All workers. To those of other machines it is the server (`farcall.cluster.machine.Host`)."""

    def __init__(self, server: Server, store: Store, settings: Settings) -> None:
        self._server = server
        self._store = store
        self._address = settings.listen
        self._lease = settings.worker_lease
        self._own = settings.own_worker
        self._listener: Listener | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.loop = server.loop
        self.now = server.now
        server.fleet.awaits_workers = bool(settings.listen)
        self.shut_out: list[str] = []  # workers that have joined and cannot come back

    async def open(self) -> None:
        """Listens, where that is set. Raises what `Listener.listen` raises."""
        directory = self._server.paths.state / "cluster"
        if not self._address:
            if directory.exists():  # as it was started before
                from farcall.cluster.registry import REGISTRY, Registry

                self.shut_out = [one.name for one in Registry(directory / REGISTRY).workers]
            return
        from farcall.cluster.listener import Listener

        self._listener = Listener(self, self._server.server_id, directory, self._store, self._lease)
        self._expect()
        await self._listener.listen(self._address)

    async def close(self) -> None:
        """Ends all containers of other machines at once."""
        if self._ticking is not None:
            self._ticking.cancel()
        if self._listener is not None:
            await self._listener.close()

    # --- for the server

    @property
    def _machines(self) -> list[Machine]:
        return [] if self._listener is None else list(self._listener.machines.values())

    @property
    def containers(self) -> list[Container]:
        """All containers that are not gone."""
        return [*self._server.worker.containers, *(one for machine in self._machines for one in machine.containers)]

    def states(self) -> dict[str, str]:
        """The state of each worker of another machine, by name."""
        return {one.name: one.state for one in self._listings() if one.worker_id != HERE}

    def start(self, placement: Placement, container_id: str, pool: Pool) -> Container:
        """Makes a container of a pool where it was given room."""
        arguments = container_id, pool.app.app_id, pool.function, pool.params, pool, placement.gpus
        if placement.worker_id == HERE or self._listener is None:
            return self._server.worker.start(*arguments)
        self._tick_soon()
        return self._listener.machines[placement.worker_id].start(*arguments)

    def prepare(self, interpreter: Interpreter) -> None:
        """Containers of this interpreter may soon be wanted, anywhere."""
        if self._own:
            self._server.worker.prepare(interpreter)
        for machine in self._machines:
            machine.prepare(interpreter)

    async def measure(self) -> dict[str, Usage]:
        """What containers use, by id; without those of workers that do not say so within `MEASURE_SECONDS`."""
        sources = [self._server.worker.measure(), *(one.measure() for one in self._machines if one.is_reachable)]
        found: dict[str, Usage] = {}
        asked = [asyncio.wait_for(one, MEASURE_SECONDS) for one in sources]
        for usages in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(usages, dict):
                found |= usages
        return found

    def exec(self, container_id: str, session: Session, seq: int) -> Running:
        """A command that is to run in a container, for a session's request of that number."""
        mirror = self._mirror(container_id)
        return ExecStreams(self._server.worker, session, seq) if mirror is None else mirror.exec(session, seq)

    def _mirror(self, container_id: str) -> Mirror | None:
        return next(
            (one for machine in self._machines for one in machine.containers if one.container_id == container_id), None
        )

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = self.loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        if not self._server.worker.containers:  # else that worker's time is the server's
            self._server.tick()
        if any(machine.containers for machine in self._machines):
            self._tick_soon()

    # --- for workers of other machines

    async def given(self, function: FunctionSpec) -> tuple[Given, dict[str, str]]:
        """What a container that starts now is made from, and its environment."""
        root = self._server.images.root(function.image_id) if function.image_id else None
        volumes = await self._server.volumes.mounted(function) if function.volumes else ()
        return Given(root, volumes), await self._server.secrets.environment(function)

    def on_text(self, container: Container, stream: str, text: str, of: Assignment | None) -> None:
        """Something that a container wrote past Python."""
        self._server.logs.add_of(container, stream, text, of)

    def _expect(self) -> None:
        registry = self._listening().registry
        self._server.fleet.expect(place for worker in registry.workers for place in worker.places)

    def on_joined(self, machine: Machine, places: list[str]) -> None:
        """It can have containers. `places` are the words by which functions can ask for it."""
        self._expect()
        offered = capacity.of(machine.attach.offer)
        self._server.fleet.add_worker(machine.worker_id, offered, places, is_open=not machine.is_draining)

    def on_leaving(self, machine: Machine) -> None:
        """It is to have no further containers: idle ones end, the others when they have done what they run."""
        machine.is_draining = True
        self._server.fleet.set_open(machine.worker_id, is_open=False)
        for mirror in machine.containers:
            self._let_go(mirror)

    def _let_go(self, mirror: Mirror) -> None:
        pool: Any = mirror.owner
        if mirror.state is State.READY and mirror.holds:
            pool.drain(mirror)
        else:
            mirror.stop(EXIT_GRACE, "its worker is drained", self.now())

    def on_lost(self, machine: Machine) -> None:
        """It is gone, and its containers will be."""
        self._server.fleet.remove_worker(machine.worker_id)

    # --- what programs ask

    async def answer(self, message: Request) -> bytes | None:
        """The body of the answer to a client's request. Raises what it is refused for."""
        if isinstance(message, ListWorkers):
            return _encode(self._listings())
        listener = self._listening()
        match message:
            case CreateWorkerToken(label=label, lifetime=lifetime, address=address):
                address = address or self._joined_at()
                fingerprint = listener.authority.fingerprint
                token, expires_at = listener.tokens.create(label, lifetime, address, fingerprint, time.time())
                return _encode(WorkerToken(token.token_id, token.encode(), expires_at))
            case ListWorkerTokens():
                return _encode(listener.tokens.all(time.time()))
            case RevokeWorkerToken(token_id=token_id):
                listener.tokens.revoke(token_id)
                return None
            case DrainWorker():
                await self._drain(listener, message)
                return None
            case RemoveWorker():
                self._remove(listener, message)
                return None

    def _listening(self) -> Listener:
        if self._listener is None:
            raise errors.ConflictError(
                "this server does not listen for workers: start it with `farcall server start --listen HOST:PORT`, or "
                "set `listen`, and end this one first with `farcall server stop`"
            )
        return self._listener

    def _joined_at(self) -> str:
        """The address for tokens that name none."""
        import socket

        address = self._listening().address
        host, _, port = address.rpartition(":")
        if host in ("0.0.0.0", "[::]"):
            raise errors.InvalidError(
                f"this server listens on all its addresses ({address}): say by which workers reach it, as "
                f"--address {socket.gethostname()}:{port}"
            )
        return address

    async def _drain(self, listener: Listener, message: DrainWorker) -> None:
        worker = listener.registry.find(message.worker)
        listener.registry.drain(worker, draining=not message.undo)
        machine = listener.machines.get(worker.worker_id)
        if machine is None:
            return
        if message.undo:
            if machine.is_leaving:
                return  # it has them again when it is started again
            machine.is_draining = False
            self._server.fleet.set_open(machine.worker_id, is_open=True)
            return
        self.on_leaving(machine)
        while machine.containers and machine.is_draining:  # noqa: ASYNC110 - a container tells its pool, and nobody else
            await asyncio.sleep(_LOOK_SECONDS)
        if not machine.is_draining:
            raise errors.ConflictError(
                f"worker {worker.name} is not drained: while its containers finished, somebody undid that (`farcall "
                f"worker drain --undo {worker.name}`), so it gets containers again. To empty it, drain it once more"
            )

    def _remove(self, listener: Listener, message: RemoveWorker) -> None:
        worker = listener.registry.find(message.worker)
        machine = listener.machines.get(worker.worker_id)
        if machine is not None and machine.containers and not message.force:
            raise errors.ConflictError(
                f"worker {worker.name} has {len(machine.containers)} containers: drain it first with `farcall worker "
                f"drain {worker.name}`, or lose them with --force"
            )
        listener.remove(worker)
        self._expect()

    def _listings(self) -> list[WorkerListing]:
        found: list[WorkerListing] = []
        if self._own:
            found.append(self._own_listing())
        if self._listener is None:
            return found
        for worker in self._listener.registry.workers:
            machine = self._listener.machines.get(worker.worker_id)
            listing = WorkerListing(worker.worker_id, worker.name, "away", joined_at=worker.joined_at)
            listing.region, listing.labels = worker.region, worker.labels
            if machine is not None:
                _fill(listing, machine, self._server.fleet.free_memory(worker.worker_id))
            elif worker.is_draining:
                listing.state = "away, draining"
            found.append(listing)
        return found

    def _own_listing(self) -> WorkerListing:
        room = self._server.fleet.capacity(HERE)
        return WorkerListing(
            HERE,
            HERE,
            "local",
            "",
            "",
            {},
            __version__,
            len(self._server.worker.containers),
            room.cpu / 1000,
            room.memory,
            self._server.fleet.free_memory(HERE),
            self._server.worker.gpus.counts(),
            time.time() - self._server.uptime,
        )


def _fill(listing: WorkerListing, machine: Machine, free_memory: int) -> None:
    offer = machine.attach.offer
    listing.state = "draining" if machine.is_draining else "ready" if machine.is_reachable else "silent"
    listing.address = machine.address
    listing.version = machine.attach.version
    listing.containers = len(machine.containers)
    listing.cores = offer.cpu / 1000
    listing.memory = offer.memory
    listing.free_memory = free_memory
    listing.gpus = {kind: len(numbers) for kind, numbers, _ in offer.gpus}
    listing.clock_offset = machine.clock_offset
    listing.peer_port = machine.attach.peer_port
