"""What a link runs over, on the event loop: a process's pipes, a socket."""

from __future__ import annotations

import asyncio

LIMIT = 1 << 18  # bytes read ahead


class PipeStream:
    """A reader and a writer of asyncio as one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, size: int) -> bytes:
        """Some bytes, b"" at the end."""
        return await self._reader.read(size)

    def write(self, data: bytes) -> None:
        """Queues bytes. Those for a stream that has ended are dropped."""
        self._writer.write(data)

    def waiting(self) -> int:
        """Bytes written that the kernel has not taken."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Returns when more can be written. Raises OSError where the stream has ended."""
        await self._writer.drain()
