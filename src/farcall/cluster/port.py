"""The port that workers connect to: takes connections, with TLS, and bounds those that have not said who they are."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable

from farcall import errors
from farcall.cluster.tokens import split_address
from farcall.link.stream import SocketStream

HANDSHAKE_SECONDS = 10.0
MOST_UNKNOWN = 256  # connections that have not said who they are
LOG_SECONDS = 30.0  # between lines about what is beyond that
_BACKLOG = 128
_REST_SECONDS = 0.5  # where the kernel can give no connection, as no descriptor is left


class Port:
    """Anybody can connect, and has some seconds to shake hands and to say who it is. When more than `MOST_UNKNOWN` are
    at it, one ends: the oldest of the address that has most of them. So who holds connections open without a word
    keeps nobody out who speaks, and from another address not even by opening them quickly."""

    def __init__(self, context: ssl.SSLContext, serve: Callable[[SocketStream], Awaitable[None]]) -> None:
        """`serve` speaks on a connection, and closes it; it calls `admit` once it knows who is there."""
        self._context = context
        self._serve = serve
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._unknown: dict[asyncio.Task[None], str] = {}  # their addresses, the oldest first
        self._ended = 0  # since it was last said
        self._said = float("-inf")
        self._log = logging.getLogger("farcall.cluster")

    async def listen(self, address: str) -> str:
        """Begins to listen; returns where. Raises InvalidError for what is no address, and ConnectionError where nobody
        can listen there."""
        host, port = split_address(address)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, at in dict.fromkeys((family, at) for family, _, _, _, at in found):
                self._sockets.append(socket.create_server(at[:2], family=family, backlog=_BACKLOG))
        except OSError as error:
            self.shut()
            raise errors.ConnectionError(
                f"nobody can listen on {address}: {error.strerror or error}. Choose another --listen"
            ) from error
        for listener in self._sockets:
            listener.setblocking(False)
            self._accepting.append(asyncio.ensure_future(self._accept(listener)))
        bound = self._sockets[0].getsockname()[1]
        return f"{f'[{host}]' if ':' in host else host}:{bound}"

    def admit(self) -> None:
        """Who is at the other end of the current task's connection has said who it is: it may stay."""
        task = asyncio.current_task()
        if task is not None:
            self._unknown.pop(task, None)

    def shut(self) -> None:
        """Takes no further connections."""
        for task in self._accepting:
            task.cancel()
        for listener in self._sockets:
            listener.close()

    async def close(self) -> None:
        """Ends all connections, too."""
        self.shut()
        tasks = [*self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, (host, *_) = await loop.sock_accept(listener)
            except OSError as error:
                self._log.warning("a connection to the workers' port was not taken: %s", error)
                await asyncio.sleep(_REST_SECONDS)
                continue
            task = asyncio.ensure_future(self._take(connection))
            self._connections.add(task)
            self._unknown[task] = host
            task.add_done_callback(self._done)
            if len(self._unknown) > MOST_UNKNOWN:
                self._end_one()
            await asyncio.sleep(0)  # those that are here have their turn, however many more wait to be taken

    async def _take(self, connection: socket.socket) -> None:
        stream = SocketStream()  # uvloop returns another protocol, that of TLS
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: stream, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:
            self._log.debug("a connection to the workers' port had no handshake: %s", error)
            return
        await self._serve(stream)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._unknown.pop(task, None)

    def _end_one(self) -> None:
        counts = Counter(self._unknown.values())
        most = max(counts.values())
        task, host = next((task, host) for task, host in self._unknown.items() if counts[host] == most)
        del self._unknown[task]
        task.cancel()
        self._ended += 1
        now = asyncio.get_running_loop().time()
        if now - self._said >= LOG_SECONDS:
            self._log.warning(
                "more than %d connections to the workers' port have not said who they are, %d of them from %s; the "
                "oldest end (%d so far). Where those are no workers, let only workers' addresses reach the port",
                *(MOST_UNKNOWN, most, host, self._ended),
            )
            self._said = now
