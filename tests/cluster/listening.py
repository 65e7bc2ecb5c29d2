"""A real listener for workers on loopback, over TLS, and a worker's side of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from farcall import errors
from farcall.cluster import greeting, join
from farcall.cluster.authority import SERVER_NAME, new_key, worker_context
from farcall.cluster.listener import Listener
from farcall.cluster.tokens import Token
from farcall.link.stream import SocketStream
from farcall.version import __version__
from farcall.wire.messages import PROTOCOL_VERSION
from farcall.wire.workers import Attach, Attached, Enroll, Enrolled, Offer

OFFER = Offer(cpu=2000, memory=1024, disk=1024)
SESSION = b"s" * 16
LEASE = 600.0  # which no test is to see the end of


class Host:
    """A server that only notes which workers come and go."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.joined: list[Any] = []
        self.lost: list[Any] = []

    def now(self) -> float:
        return self.loop.time()

    async def given(self, function: Any) -> Any:
        raise errors.NotFoundError("there is nothing here")

    def on_text(self, *_: Any) -> None: ...

    def on_joined(self, machine: Any, places: list[str]) -> None:
        self.joined.append(machine)

    def on_leaving(self, machine: Any) -> None: ...

    def on_lost(self, machine: Any) -> None:
        self.lost.append(machine)


class Port:
    """A listener, and a worker's side of it."""

    def __init__(self, listener: Listener, host: Host, folder: Path) -> None:
        self.listener, self.host, self.folder = listener, host, folder
        self.authority = listener.authority

    def token(self) -> Token:
        address, fingerprint = self.listener.address, self.authority.fingerprint
        token, _ = self.listener.tokens.create("", 60.0, address, fingerprint, time.time())
        return token

    async def enroll(self, name: str, protocol: int = PROTOCOL_VERSION) -> Enrolled:
        token = self.token()
        asked = Enroll(protocol, __version__, token.token_id, token.secret, name, new_key(self.folder / f"{name}.key"))
        context = worker_context(self.authority.certificate)
        enrolled = await join._ask(self.listener.address, context, asked, Enrolled, SERVER_NAME)
        (self.folder / f"{name}.pem").write_bytes(enrolled.certificate)
        return enrolled

    async def attach(
        self,
        name: str,
        *,
        resumes: bool = False,
        certified: bool = True,
        session: bytes = SESSION,
        protocol: int = PROTOCOL_VERSION,
        version: str = __version__,
        region: str = "",
        labels: Mapping[str, str] = {},
        offer: Offer = OFFER,
    ) -> Any:
        keys = (self.folder / f"{name}.pem", self.folder / f"{name}.key") if certified else (None, None)
        asked = Attach(protocol, version, session, resumes, name, region, dict(labels), offer, 0.0)
        context = worker_context(self.authority.certificate, *keys)
        return await join._ask(self.listener.address, context, asked, Attached, SERVER_NAME)

    async def connect(self, name: str) -> SocketStream:
        """A worker's connection, of which the worker has been welcomed."""
        context = worker_context(self.authority.certificate, self.folder / f"{name}.pem", self.folder / f"{name}.key")
        stream = await join._connect(self.listener.address, context, SERVER_NAME)
        asked = Attach(PROTOCOL_VERSION, __version__, SESSION, False, name, "", {}, OFFER, 0.0)
        stream.write(greeting.encode(asked))
        await greeting.receive(stream, Attached)
        return stream


Run = Callable[[Callable[[Port], Awaitable[None]]], None]
