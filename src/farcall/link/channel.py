"""A channel: one client's connection, between the socket at this end and the link."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from farcall.errors import ProtocolError
from farcall.link.packets import CHUNK, Kind
from farcall.wire import descriptors
from farcall.wire.memory import new_memory
from farcall.wire.transport import Transport

WINDOW = 8 << 20  # bytes that one end may send on a channel before the other has passed them on
_QUEUE = 256  # messages read from the socket and not sent, above which no more are read

Output = tuple[Kind, bytes]  # a packet to be numbered


class Channel:
    """Turns the messages of a socket into packets, and packets into messages.

    A message's descriptors travel as what their files hold, ahead of it, and become memory files at the other end.
    Messages of a channel keep their order; a large one delays those behind it, and nobody else's.
    """

    def __init__(self, number: int, sock: socket.socket, on_change: Callable[[Channel], None]) -> None:
        self.number = number
        self.closing = False  # the other end has closed
        self.over = False  # nothing more will come out of the socket
        self._on_change = on_change
        self._out: deque[tuple[msgspec.Raw, tuple[int, ...]]] = deque()
        self._file: int | None = None  # position among the descriptors of the first message in `_out`
        self._offset = 0
        self._credit = WINDOW
        self._incoming: list[int] = []  # memory files of the message that is arriving
        self._owed = 0  # bytes taken from the link that the other end has no credit for yet
        self._transport = Transport(sock, msgspec.Raw, self._read, self._ended)
        self._transport.on_drained = self._drained

    # --- from the socket to the link

    def _read(self, message: object, fds: tuple[int, ...]) -> None:
        if not isinstance(message, msgspec.Raw):
            descriptors.close_all(fds)
            logging.getLogger("farcall.link").warning("a frame was refused: %s", message)
            return
        self._out.append((message, fds))
        if len(self._out) > _QUEUE:
            self._transport.pause()
        self._on_change(self)

    def _ended(self) -> None:
        self.over = True
        self._on_change(self)

    @property
    def can_send(self) -> bool:
        """Whether `next_packet` has one."""
        return bool(self._out) and self._credit > 0

    @property
    def finished(self) -> bool:
        """Whether everything that came out of the socket has been taken, and no more will come."""
        return self.over and not self._out

    def next_packet(self) -> Output:
        """The next packet that this channel sends; only while `can_send`."""
        message, fds = self._out[0]
        if self._file is None and fds:
            self._file, self._offset = 0, 0
            return Kind.FILE, b""
        if self._file is not None:
            data = _piece(fds[self._file], self._offset)
            if data:
                self._offset += len(data)
                self._credit -= len(data)
                return Kind.CHUNK, data
            self._file += 1
            self._offset = 0
            if self._file < len(fds):
                return Kind.FILE, b""
            self._file = None
        self._out.popleft()
        descriptors.close_all(fds)
        if len(self._out) <= _QUEUE:
            self._transport.resume()
        body = bytes(message)
        self._credit -= len(body)
        return Kind.FRAME, body

    def grant(self, credit: int) -> None:
        """The other end can take that many bytes more."""
        self._credit += credit

    # --- from the link to the socket

    def take(self, kind: Kind, body: bytes) -> None:
        """A packet of this channel. Raises ProtocolError for what cannot be."""
        if kind is Kind.FRAME:
            fds, self._incoming = tuple(self._incoming), []
            for fd in fds:
                os.lseek(fd, 0, os.SEEK_SET)
            self._transport.send(msgspec.Raw(body), fds)
        elif kind is Kind.FILE:
            self._incoming.append(new_memory())
        elif self._incoming:
            _write(self._incoming[-1], body)
        else:
            raise ProtocolError("a piece of no file")
        self._owed += len(body)

    def credit(self) -> int:
        """How many bytes the other end may send in place of those that were passed on. A client that does not read is
        given no more."""
        if self._transport.buffered or self.over:
            return 0
        owed, self._owed = self._owed, 0
        return owed

    def _drained(self) -> None:
        if self.closing:
            self.close()
        else:
            self._on_change(self)

    def finish(self) -> None:
        """The other end has closed: this one does, once what came before is passed on."""
        self.closing = True
        self._transport.flush()
        if not self._transport.buffered:
            self.close()

    def close(self) -> None:
        """Lets go of the socket and of all that waits."""
        self._transport.close()
        descriptors.close_all(self._incoming)
        self._incoming.clear()
        for _, fds in self._out:
            descriptors.close_all(fds)
        self._out.clear()


def _piece(fd: int, offset: int) -> bytes:
    try:
        return os.pread(fd, CHUNK, offset)
    except OSError as error:  # no regular file, or its disk is gone: the receiver sees it end here
        logging.getLogger("farcall.link").warning("a descriptor cannot be read: %s", error)
        return b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
