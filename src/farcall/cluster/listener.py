"""Where workers connect: over TLS, to join with a token, and with the certificate that they got for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from farcall import errors
from farcall.cluster import greeting
from farcall.cluster.authority import Authority, name_in
from farcall.cluster.contents import Contents
from farcall.cluster.machine import Known, Machine
from farcall.cluster.port import Port
from farcall.cluster.registry import REGISTRY, KnownWorker, Registry, check_said
from farcall.cluster.tokens import Tokens
from farcall.link.stream import SocketStream
from farcall.version import __version__
from farcall.wire.messages import PROTOCOL_VERSION
from farcall.wire.workers import Attach, Attached, Enroll, Enrolled, Greet, Greeting, Opening

if TYPE_CHECKING:
    from farcall.cluster.machine import Host
    from farcall.content.store import Store

LOOK_SECONDS = 0.25  # between looks at the leases
_UNSENT = 256 * 1024  # bytes that the kernel keeps of what a slow line has not taken: what is urgent waits behind them
_GOODBYE_SECONDS = 1.0  # for the word that the server ends to leave


class Listener:
    """The workers of one server."""

    def __init__(self, host: Host, server_id: str, directory: Path, store: Store, lease: float) -> None:
        self.authority = Authority(directory)
        self.tokens = Tokens(directory / "tokens.json")
        self.registry = Registry(directory / REGISTRY)
        self.machines: dict[str, Machine] = {}
        self.address = ""  # where it listens
        self._host = host
        self._server_id = server_id
        self._lease = lease
        self._contents = Contents(store)
        self._looking: asyncio.TimerHandle | None = None
        self._port = Port(self.authority.context(), self._serve)
        self._log = logging.getLogger("farcall.cluster")

    async def listen(self, address: str) -> None:
        """Begins to listen. Raises InvalidError for what is no address, and ConnectionError where nobody can listen
        there."""
        self.address = await self._port.listen(address)
        self._log.info("workers can join at %s", self.address)
        self._look()

    async def close(self) -> None:
        """Ends all workers' containers, and listens no more."""
        if self._looking is not None:
            self._looking.cancel()
        self._port.shut()
        machines = list(self.machines.values())
        for machine in machines:
            machine.say_goodbye()
        if machines:
            await asyncio.wait(
                [asyncio.ensure_future(one.said_goodbye()) for one in machines], timeout=_GOODBYE_SECONDS
            )
        for machine in machines:
            self._lose(machine, "its server ended")
        await self._port.close()
        self._contents.close()

    def _look(self) -> None:
        self._looking = self._host.loop.call_later(LOOK_SECONDS, self._look)
        for machine in list(self.machines.values()):
            silent = machine.silent_for()
            if fault := machine.fault:
                self._lose(machine, fault)
            elif silent > machine.lease:
                self._lose(machine, f"worker {machine.name} was silent for {machine.lease:g} s")
            elif silent > machine.lease / 2 and machine.is_linked:
                self._log.warning("worker %s is silent: its connection is ended", machine.name)
                machine.disconnect()

    def _lose(self, machine: Machine, why: str) -> None:
        if self.machines.get(machine.worker_id) is not machine:
            return
        self._log.warning("worker %s is lost: %s", machine.name, why)
        del self.machines[machine.worker_id]
        self._host.on_lost(machine)  # first: what its containers held is to be placed elsewhere
        machine.lost(why)

    def remove(self, worker: KnownWorker) -> None:
        """A worker is none any more; its containers are lost, where it has any."""
        machine = self.machines.get(worker.worker_id)
        self.registry.remove(worker)
        if machine is not None:
            machine.say_goodbye()
            self._host.loop.call_later(LOOK_SECONDS, self._lose, machine, f"worker {worker.name} was removed")

    # --- connections

    async def _serve(self, stream: SocketStream) -> None:
        host, port, *_ = stream.get_extra_info("peername") or ("?", 0)
        peer = f"{host}:{port}"
        machine: Machine | None = None
        try:
            message: Opening = await greeting.receive(stream, Opening)
            match message:
                case Greet():
                    stream.write(greeting.encode(Greeting(self.authority.certificate)))
                case Enroll():
                    stream.write(greeting.encode(self._enroll(message, peer)))
                case Attach():
                    machine = self._attach(message, _certificate_of(stream), host)
                    self._port.admit()
                    tune(stream)
                    welcome = Attached(PROTOCOL_VERSION, __version__, self._server_id, self._lease, time.time())
                    stream.write(greeting.encode(welcome))
                    await machine.carry(stream)
        except errors.FarcallError as error:
            self._log.warning("%s: %s", peer, error)
            stream.write(greeting.encode(greeting.refusal(error)))
        except OSError as error:
            self._log.info("%s: the connection broke: %s", peer, error)
        except asyncio.CancelledError:
            if machine is None:
                stream.abort()
            raise
        finally:
            await stream.close()

    def _enroll(self, message: Enroll, peer: str) -> Enrolled:
        _check_version(message.protocol, message.version)
        self.tokens.check(message.token_id, message.secret, time.time())
        worker = self.registry.make(message.name, time.time())
        certificate = self.authority.issue(message.request, worker.worker_id)
        self.tokens.used(message.token_id)
        self.registry.add(worker)  # the last: whatever failed before, its name is not taken
        self._log.info("worker %s (%s) has joined from %s", worker.name, worker.worker_id, peer)
        return Enrolled(worker.worker_id, certificate)

    def _attach(self, message: Attach, worker_id: str, address: str) -> Machine:
        worker = self.registry.get(worker_id)
        if worker is None:
            raise errors.AuthError(
                "this server does not know the worker (any more): it was removed, or joined another server. Join again "
                "with a new token (`farcall worker token create` there)"
            )
        _check_version(message.protocol, message.version)
        check_said(message.region, message.labels, [kind for kind, _, _ in message.offer.gpus])
        machine = self.machines.get(worker_id)
        if message.resumes:
            if machine is None or machine.session != message.session:
                raise errors.ConnectionLostError("the lease of this worker's containers is over")
            machine.moved(message, address)
            return machine
        if machine is not None:
            if machine.is_linked and machine.silent_for() < machine.lease / 2:
                raise errors.ConflictError(
                    f"worker {machine.name} is connected already, from {machine.address}: each machine joins with a "
                    "state directory of its own, which is not to be copied"
                )
            self._lose(machine, f"worker {worker.name} was started again")
        worker = self.registry.rename(worker, message.name)
        worker = self.registry.place(worker, message.region, message.labels)
        machine = Machine(self._host, Known(worker_id, worker.name), message, address, self._lease, self._contents)
        machine.is_draining = worker.is_draining
        machine.clock_offset = message.clock - time.time()
        self.machines[worker_id] = machine
        self._log.info("worker %s is here, from %s", worker.name, address)
        self._host.on_joined(machine, worker.places)
        return machine


def _check_version(protocol: int, version: str) -> None:
    check_said("", {}, [version])
    if PROTOCOL_VERSION - 1 <= protocol <= PROTOCOL_VERSION:
        return
    said = f"the worker is farcall {version} (protocol {protocol}), this server {__version__} ({PROTOCOL_VERSION})"
    if protocol < PROTOCOL_VERSION:
        raise errors.VersionError(f"{said}: install that one there, `pip install farcall=={__version__}`")
    raise errors.VersionError(
        f"{said}: install the worker's here, `pip install farcall=={version}`, and start it again"
    )


def _certificate_of(stream: SocketStream) -> str:
    connection = stream.get_extra_info("ssl_object")
    certificate = None if connection is None else connection.getpeercert(True)
    if not certificate:
        raise errors.AuthError("a worker has to show its certificate: join with a token first")
    return name_in(certificate)


def tune(stream: SocketStream) -> None:
    """Sets a link's socket: small messages leave at once, and the kernel keeps little that has not been sent."""
    sock = stream.get_extra_info("socket")
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25), _UNSENT),
    ):
        with suppress(OSError, AttributeError):
            sock.setsockopt(level, option, value)
