"""What a link runs over, on the event loop: a process's pipes, a socket with TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

LIMIT = 1 << 18  # bytes read ahead, and bytes that wait to be written
_PAUSE = 0.001  # seconds
_UNREAD = 1 << 21  # bytes that wait for who has not asked for them, above which no more are read; a frame fits


class PipeStream:
    """A reader and a writer of asyncio as one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Calls `take` with what comes, and returns at the end."""
        while data := await self._reader.read(LIMIT):
            take(data)

    def write(self, data: bytes) -> None:
        """Queues bytes. Those for a stream that has ended are dropped."""
        self._writer.write(data)

    def waiting(self) -> int:
        """Bytes written that the kernel has not taken."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Returns when more can be written. Raises OSError where the stream has ended."""
        await self._writer.drain()


class SocketStream(asyncio.Protocol):
    """A connection, with TLS or without. What comes is handed on as it comes, without another turn of the loop."""

    def __init__(self, connected: Callable[[SocketStream], None] | None = None) -> None:
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._take: Callable[[bytes], None] | None = None
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._closed = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None

    # --- of the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(LIMIT)
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        if self._take is None:
            self._buffer += data
            self._changed.set()
            if len(self._buffer) > _UNREAD and self._transport is not None:
                self._transport.pause_reading()
            return
        try:
            self._take(bytes(data))
        except Exception as error:
            self._failure = error
            self.abort()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._failure is None and isinstance(exc, ssl.SSLError):
            self._failure = exc
        self._can_write.set()
        self._changed.set()
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # --- for who uses it

    def get_extra_info(self, name: str) -> Any:
        """What asyncio knows of the connection: "socket", "peername", "ssl_object"."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    async def readexactly(self, n: int, /) -> bytes:
        """So many bytes. Raises IncompleteReadError at the end, and the SSLError that ended the connection."""
        while len(self._buffer) < n:
            if self._closed.done():
                if self._failure is not None:
                    raise self._failure
                raise asyncio.IncompleteReadError(bytes(self._buffer), n)
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        self._read_on()
        return data

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Calls `take` with what comes, and returns at the end. Raises what `take` raises."""
        data, self._buffer = bytes(self._buffer), bytearray()
        if data:
            take(data)
        self._take = take
        self._read_on()
        try:
            await asyncio.shield(self._closed)
        finally:
            self._take = None
        if self._failure is not None:
            raise self._failure

    def _read_on(self) -> None:
        if self._transport is not None and len(self._buffer) <= _UNREAD and not self._transport.is_reading():
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Queues bytes. Those for a connection that has ended are dropped."""
        if self._transport is not None and not self._closed.done():
            self._transport.write(data)

    def waiting(self) -> int:
        """Bytes written that the kernel has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Returns when more can be written."""
        await self._can_write.wait()
        if self.waiting() > LIMIT:  # TLS says that it has room, while the socket below it has none
            await asyncio.sleep(_PAUSE)

    async def close(self, within: float = 1.0) -> None:
        """Ends the connection; what was written is sent, for so many seconds."""
        if self._transport is None:
            return
        self._transport.close()
        await asyncio.wait([self._closed], timeout=within)
        self.abort()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None and not self._closed.done():
            self._transport.abort()
