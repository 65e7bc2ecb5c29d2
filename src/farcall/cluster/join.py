"""`farcall worker join`: this machine becomes a worker, and stays one until it is told to end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from farcall import errors, settings
from farcall.cluster import greeting
from farcall.cluster.agent import Agent
from farcall.cluster.authority import (
    SERVER_NAME,
    fingerprint,
    new_key,
    peers_context,
    unverified_context,
    worker_context,
    write_private,
)
from farcall.cluster.listener import tune
from farcall.cluster.registry import check_said
from farcall.cluster.sharing import Sharing
from farcall.cluster.tokens import Token, split_address
from farcall.link.stream import SocketStream
from farcall.version import __version__
from farcall.wire.messages import PROTOCOL_VERSION
from farcall.wire.workers import Attach, Attached, Enroll, Enrolled, Greet, Greeting
from farcall.worker import offer

if TYPE_CHECKING:
    from farcall.content.store import Store
    from farcall.mounts.lazy.sources import Source
    from farcall.worker.gpus import Gpus

CONNECT_SECONDS = 10.0
RETRY_SECONDS = 0.5  # first, between attempts to connect
RETRY_MOST = 5.0
SKEW_SECONDS = 5.0  # that a worker's clock may differ before that is said


class Identity(msgspec.Struct):
    """Who this machine is to one server; beside it lie the key and the certificates."""

    worker_id: str
    name: str
    address: str


class Options(NamedTuple):
    """What `farcall worker join` was given. `address` is "" for the token's, or the one used before."""

    token: Token | None
    name: str
    address: str
    region: str
    labels: dict[str, str]
    object_store: Source | None = None
    peer_listen: str = ""


class Membership:
    """The directory that has what this machine needs to be a worker of one server. One process uses it."""

    def __init__(self, directory: Path) -> None:
        """Raises ConflictError where another process uses it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise errors.ConflictError(
                f"this machine is a worker already: `farcall worker join` runs with {directory}. A second worker on "
                "one machine needs another FARCALL_STATE_DIR"
            ) from None

    @property
    def identity(self) -> Identity | None:
        """Who this machine is, once it has joined."""
        try:
            return msgspec.json.decode((self.directory / "worker.json").read_bytes(), type=Identity)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    @property
    def authority(self) -> bytes:
        """The certificate of the server's authority, in PEM."""
        return (self.directory / "ca.pem").read_bytes()

    def context(self) -> ssl.SSLContext:
        """How the server is connected to. Raises AuthError where what is here does not belong together."""
        try:
            return worker_context(self.authority, self.directory / "worker.pem", self.directory / "worker.key")
        except OSError as error:
            raise errors.AuthError(
                f"the key and the certificates of this worker in {self.directory} cannot be used ({error}): join again "
                "with a new token, from `farcall worker token create` on the server's machine"
            ) from error

    def peer_context(self) -> ssl.SSLContext:
        """How other workers are connected to, who are known by their ids."""
        context = self.context()
        context.check_hostname = False
        return context

    def peers_context(self) -> ssl.SSLContext:
        """How other workers connect."""
        return peers_context(self.authority, self.directory / "worker.pem", self.directory / "worker.key")

    def close(self) -> None:
        """Another process may use it."""
        os.close(self._lock)

    async def enroll(self, token: Token, name: str, address: str) -> Identity:
        """Joins: checks that the server is the token's, and has it certify a new key. Raises AuthError where either
        is not who it should be, ConnectionError where the server cannot be reached."""
        greeted = await _ask(address, unverified_context(), Greet(), Greeting, None)
        if fingerprint(greeted.certificate) != token.fingerprint:
            raise errors.AuthError(
                f"who answers at {address} is not the server that issued the token: its authority's fingerprint is "
                f"{fingerprint(greeted.certificate)[:16]}..., the token says {token.fingerprint[:16]}.... Make a new "
                "token there; if you have just done so, somebody is between you and it"
            )
        key = self.directory / "new.key"  # until the server has taken it, the old one may be of use
        try:
            asked = Enroll(PROTOCOL_VERSION, __version__, token.token_id, token.secret, name, new_key(key))
            enrolled = await _ask(address, worker_context(greeted.certificate), asked, Enrolled, SERVER_NAME)
            os.replace(key, self.directory / "worker.key")
        finally:
            key.unlink(missing_ok=True)
        write_private(self.directory / "ca.pem", greeted.certificate)
        write_private(self.directory / "worker.pem", enrolled.certificate)
        identity = Identity(enrolled.worker_id, name, address)
        self.keep(identity)
        return identity

    def keep(self, identity: Identity) -> None:
        """What is to be known when it is started again."""
        write_private(self.directory / "worker.json", msgspec.json.encode(identity))


def machine_name() -> str:
    """What this machine is called, as a worker may be."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().partition(".")[0])[:63].lstrip("._-") or "worker"


async def join(
    membership: Membership,
    options: Options,
    store: Store,
    launcher_state: Path,
    gpus: Gpus,
    say: Callable[[str], None],
    leaving: asyncio.Event,
) -> None:
    """Joins where that has not been done, and works until `leaving` is set and no container is left, or for ever. A
    worker that the server has forgotten joins anew where it is started with a token.

    Raises AuthError where the server will not have this worker, and other errors that no further attempt would mend.
    """
    check_said(options.region, options.labels)  # before a token is used for it
    identity = membership.identity
    token = options.token

    async def enroll(token: Token) -> Identity:
        name = options.name or (machine_name() if identity is None else identity.name)
        joined = await membership.enroll(token, name, options.address or token.address)
        say(f"joined {joined.address} as {joined.name}")
        return joined

    has_joined = identity is not None
    if token is not None and (identity is None or fingerprint(membership.authority) != token.fingerprint):
        identity, has_joined = await enroll(token), False
    if identity is None:
        raise errors.AuthError(
            "this machine has not joined a server yet: give it a token, from `farcall worker token create` on the "
            "server's machine, with --token-file or FARCALL_WORKER_TOKEN"
        )
    while True:
        identity.name = options.name or identity.name
        identity.address = options.address or (token.address if token is not None else identity.address)
        sockets = settings.paths().runtime  # whose path is short enough, wherever the state is
        sharing = Sharing(identity.worker_id, store, sockets, options.object_store, options.peer_listen)
        agent = Agent(identity.name, identity.worker_id, store, launcher_state, gpus, sharing)
        await agent.worker.open()
        joined = _Joined(membership, identity, options, agent, say, leaving)
        try:
            return await joined.work()
        except errors.AuthError as error:
            # One that is removed while it works stays so: whoever starts it again with a token wants it back.
            if token is None or not has_joined or joined.is_known:
                raise
            say(f"joining anew: {error}")
        finally:
            await agent.close()
        identity, has_joined = await enroll(token), False


class _Joined:
    """The connections of a worker, one after another."""

    def __init__(
        self,
        membership: Membership,
        identity: Identity,
        options: Options,
        agent: Agent,
        say: Callable[[str], None],
        leaving: asyncio.Event,
    ) -> None:
        self._membership = membership
        self._identity = identity
        self._options = options
        self._agent = agent
        self._say = say
        self._leaving = leaving
        self._log = logging.getLogger("farcall.cluster")
        self.is_known = False  # whether the server has welcomed it before

    async def work(self) -> None:
        """Until it leaves."""
        connecting = asyncio.ensure_future(self._stay_connected())
        leaving = asyncio.ensure_future(self._leave())
        try:
            await asyncio.wait([connecting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
        finally:
            for task in (connecting, leaving):
                task.cancel()
            await asyncio.gather(connecting, leaving, return_exceptions=True)

    async def _leave(self) -> None:
        await self._leaving.wait()
        session = self._agent.session
        if session is not None and (session.is_linked or session.containers):
            self._say("leaving: what runs here finishes first")
            session.leave()
            await session.finish()

    async def _stay_connected(self) -> None:
        pause = RETRY_SECONDS
        told = ""
        while True:
            began = time.monotonic()
            try:
                await self._connect_once()
                why = "the connection ended"
            except errors.ConnectionLostError as error:
                why = str(error)
                if self._agent.session is not None:
                    self._agent.session.end(why)
            except (errors.AuthError, errors.VersionError, errors.InvalidError, errors.AlreadyExistsError) as error:
                # A conflict with a connection of its own, whose end the server has not seen, passes.
                if not isinstance(error, errors.ConflictError) or not self.is_known:
                    raise
                why = str(error)
            except (errors.FarcallError, OSError) as error:
                why = str(error)
            if why != told:
                self._say(f"not connected to {self._identity.address}: {why}")
                told = why
            if time.monotonic() - began > RETRY_MOST:
                pause, told = RETRY_SECONDS, ""
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(RETRY_MOST, pause * 1.5)

    async def _connect_once(self) -> None:
        stream = await _connect(self._identity.address, self._membership.context(), SERVER_NAME)
        try:
            session = self._agent.session
            host = stream.get_extra_info("sockname")[0]
            self._agent.sharing.listen_beside(host, self._membership.peer_context(), self._membership.peers_context)
            asked = Attach(
                PROTOCOL_VERSION,
                __version__,
                os.urandom(16) if session is None else session.id,
                session is not None,
                self._identity.name,
                self._options.region,
                self._options.labels,
                offer.of_this_machine(self._membership.directory, self._agent.worker.gpus),
                time.time(),
                self._agent.sharing.port,
            )
            stream.write(greeting.encode(asked))
            attached: Attached = await greeting.receive(stream, Attached)
            tune(stream)
            if session is None:
                session = self._agent.begin(attached.lease, asked.session)
                skew = time.time() - attached.clock
                self._say(f"worker {self._identity.name} of {self._identity.address}: ready")
                if abs(skew) > SKEW_SECONDS:
                    self._say(
                        f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the "
                        "server's, whose clock is the one that counts: set it, for what your own code reads from it"
                    )
            else:
                self._say(f"connected to {self._identity.address} again")
            if not self.is_known:
                self.is_known = True
                self._membership.keep(self._identity)  # its name and address are right
            if self._leaving.is_set():
                session.leave()
            await session.carry(stream)
        except ssl.SSLError as error:
            raise errors.AuthError(
                f"{self._identity.address} does not take this worker's certificate ({error.reason}): join again with a "
                "new token, from `farcall worker token create` there"
            ) from error
        finally:
            await stream.close()


async def _connect(address: str, context: ssl.SSLContext, name: str | None) -> SocketStream:
    host, port = split_address(address)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, stream = await asyncio.get_running_loop().create_connection(
                SocketStream,
                host,
                port,
                ssl=context,
                server_hostname=name or "",
                ssl_handshake_timeout=CONNECT_SECONDS,
            )
            return stream
    except ssl.SSLCertVerificationError as error:
        raise errors.AuthError(
            f"who answers at {address} is not the server that this worker joined ({error.verify_message}). If the "
            "server was set up anew, join again with a new token, from `farcall worker token create` there"
        ) from error
    except TimeoutError:
        raise errors.ConnectionError(f"{address} did not answer within {CONNECT_SECONDS:g} s") from None
    except OSError as error:
        raise errors.ConnectionError(
            f"{address} cannot be reached: {error.strerror or error}. Is the server started with --listen, and is the "
            "port open?"
        ) from error


async def _ask(address: str, context: ssl.SSLContext, message: Any, expected: Any, name: str | None) -> Any:
    stream = await _connect(address, context, name)
    try:
        stream.write(greeting.encode(message))
        return await greeting.receive(stream, expected)
    finally:
        await stream.close()
