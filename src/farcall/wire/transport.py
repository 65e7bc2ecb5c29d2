"""The event loop's side of the wire: one connection of a server.

asyncio's own transports drop file descriptors, so this one reads and writes the socket itself when the loop says it is
ready. Messages sent in one turn of the loop leave in one system call.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from farcall.wire import descriptors
from farcall.wire.connection import READ_SIZE
from farcall.wire.frames import FrameEncoder
from farcall.wire.incoming import Incoming

UNREAD_BYTES = 256 * 2**20  # that a container may leave unread of what it is sent; a runner reads all the time

# All transports of a process read on one loop, one after another, so they share one buffer.
_read_buffer = bytearray(READ_SIZE)
_read_view = memoryview(_read_buffer)


class Sender(Protocol):
    """What has something to send."""

    def flush(self) -> None:
        """Sends it."""
        ...


# Those with something to send that was caused by what is being read now; None while nothing is. What a read causes
# leaves right after it, without another turn of the loop.
_corked: list[Sender] | None = None


def flush_soon(sender: Sender) -> None:
    """Has it flushed when what is being read has been handled, or in the next turn of the loop."""
    if _corked is None:
        asyncio.get_running_loop().call_soon(sender.flush)
    else:
        _corked.append(sender)


class reading:  # noqa: N801 - used as a function
    """While this is held, what has just been read is handled; what is sent meanwhile leaves together at its end."""

    __slots__ = ("_corked", "_outer")

    def __enter__(self) -> None:
        global _corked
        self._outer = _corked
        if _corked is None:
            _corked = []
        self._corked = _corked

    def __exit__(self, *_: object) -> None:
        global _corked
        _corked = self._outer
        if self._outer is not None:
            return
        for sender in self._corked:
            try:
                sender.flush()
            except Exception:  # of its `on_close`; the others' messages are not to be lost for it
                logging.getLogger("farcall.wire").exception("the end of a connection was not handled")


class Transport:
    """A non-blocking stream of messages on the running loop.

    `on_message(message, fds)` gets each message, or a ProtocolError for a frame that was refused, and owns the
    descriptors. `on_close()` is called once, after the last message, when the peer is gone or `close` was called.
    """

    def __init__(
        self,
        sock: socket.socket,
        messages: Any,
        on_message: Callable[[Any, tuple[int, ...]], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._on_message = on_message
        self._on_close = on_close
        self._encoder = FrameEncoder()
        self._incoming = Incoming(messages)
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._flushing = False
        self._paused = False
        self._writing = False
        self.buffered = 0  # bytes accepted by `send` and not yet taken by the kernel
        self.closed = False
        self.on_drained: Callable[[], None] | None = None  # what had to wait for the peer has been sent
        self._loop.add_reader(self._fd, self._readable)

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Queues one message. Takes over the descriptors and closes them once sent. A closed transport drops both."""
        if self.closed:
            descriptors.close_all(fds)
            return
        try:
            frame = self._encoder.encode(message, len(fds))
        except BaseException:
            descriptors.close_all(fds)
            raise
        self.buffered += len(frame)
        self._out.append((frame, tuple(fds)))
        if not self._flushing and not self._writing:
            self._flushing = True
            flush_soon(self)

    def close(self, *, after_flush: bool = False) -> None:
        """Ends the connection; `on_close` follows in the same turn of the loop. With `after_flush` what can be sent at
        once is sent first."""
        if self.closed:
            return
        if after_flush:
            self.flush()
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        for _, fds in self._out:
            descriptors.close_all(fds)
        self._out.clear()
        self.buffered = 0
        self._incoming.close()
        self._sock.close()
        self._on_close()

    def pause(self) -> None:
        """Stops reading: the peer is held back by the kernel's buffers."""
        if not self._paused and not self.closed:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Reads again."""
        if self._paused and not self.closed:
            self._paused = False
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into(
                [_read_buffer], descriptors.ANCILLARY_SPACE, descriptors.CLOSE_ON_EXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count, ancillary, flags = 0, [], 0
        if count == 0:
            self.close()
            return
        with reading():
            self._incoming.add(_read_view[:count], ancillary, flags)
            while (taken := self._incoming.take()) is not None:
                message, fds = taken
                if self.closed:
                    descriptors.close_all(fds)
                    continue
                try:
                    self._on_message(message, fds)
                except Exception:
                    # The messages behind it are not to be lost for it.
                    logging.getLogger("farcall.wire").exception("a %s was not handled", type(message).__name__)

    def flush(self) -> None:
        """Sends now what the kernel takes at once."""
        self._flushing = False
        out = self._out
        while out and not self.closed:
            frame, fds = out[0]
            batch: list[bytes] = []
            ancillary: descriptors.Ancillary = []
            if fds:
                batch.append(frame)
                ancillary = descriptors.pack(fds)
            else:
                for frame, more in out:
                    if more or len(batch) == 64:
                        break
                    batch.append(frame)
            try:
                sent = self._sock.sendmsg(batch, ancillary)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close()
                return
            self.buffered -= sent
            for frame in batch:
                if sent < len(frame):
                    break
                sent -= len(frame)
                descriptors.close_all(out.popleft()[1])
            else:
                continue
            if sent:
                # The descriptors went with the first byte.
                frame, fds = out.popleft()
                descriptors.close_all(fds)
                out.appendleft((frame[sent:], ()))
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._writable)
            return
        if self._writing and not self.closed:
            self._writing = False
            self._loop.remove_writer(self._fd)
            if self.on_drained is not None:
                self.on_drained()

    def _writable(self) -> None:
        self.flush()
