"""A channel: one connection's part of a link, between this end of the connection and the link."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from farcall.errors import ProtocolError
from farcall.link.packets import CHUNK, MAX_BODY, Kind
from farcall.wire import descriptors
from farcall.wire.frames import MAX_DESCRIPTORS
from farcall.wire.memory import new_memory, total_size
from farcall.wire.transport import Transport

WINDOW = 8 << 20  # bytes that one end may send on a channel before the other has passed them on
_GRANT = WINDOW // 8  # bytes passed on before the other end is told: a word for each message would double them
_QUEUE = 256  # messages taken from this end and not sent, above which no more are taken
OVERHEAD = 128  # bytes that a message takes which waits, beyond its own

Output = tuple[Kind, bytes]  # a packet to be numbered


class End(Protocol):
    """This end of a connection that a channel carries: a `Transport`, or something in this process."""

    buffered: int  # bytes given to `send` that have not been passed on
    on_drained: Callable[[], None] | None

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Passes a message on, a `Raw`. Takes over the descriptors."""
        ...

    def flush(self) -> None:
        """Passes on what can be, at once."""
        ...

    def pause(self) -> None:
        """Gives the channel nothing more until `resume`, as far as it can."""
        ...

    def resume(self) -> None: ...

    def close(self, *, after_flush: bool = False) -> None: ...


Connect = Callable[["Channel"], End]
"""Makes this end of a connection for a channel: calls its `read` with each message, and its `ended` at the end."""


def over_socket(sock: socket.socket) -> Connect:
    """A connection whose end is a socket."""
    return lambda channel: Transport(sock, msgspec.Raw, channel.read, channel.ended)


class Channel:
    """Turns the messages of a connection into packets, and packets into messages.

    A message's descriptors travel as what their files hold, ahead of it, and become memory files at the other end.
    Messages of a channel keep their order; a large one delays those behind it, and nobody else's.
    """

    def __init__(self, number: int, connect: Connect, on_change: Callable[[Channel], None]) -> None:
        self.number = number
        self.closing = False  # the other end has closed
        self.over = False  # nothing more will come from this end
        self._on_change = on_change
        self._out: deque[tuple[bytes, tuple[int, ...], int]] = deque()  # with how much of `held` it is
        self._file: int | None = None  # position among the descriptors of the first message in `_out`
        self._offset = 0
        self._credit = WINDOW
        self._incoming: list[int] = []  # memory files of the message that is arriving
        self._owed = 0  # bytes taken from the link that the other end has no credit for yet
        self.queued = 0  # bytes of messages in `_out`
        self.held = 0  # bytes in memory for what is in `_out` and counts, with files
        self.arriving = 0  # bytes in files of the message that is arriving
        self._end = connect(self)
        self._end.on_drained = self._drained

    # --- from this end to the link

    def read(self, message: object, fds: tuple[int, ...], *, counts: bool = True) -> None:
        """A message, a `Raw`, from this end; owns the descriptors. `counts` is whether it is part of `held`: what
        somebody else counts and bounds is not."""
        if not isinstance(message, msgspec.Raw):
            descriptors.close_all(fds)
            logging.getLogger("farcall.link").warning("a frame was refused: %s", message)
            return
        body = bytes(message)
        size = 0
        if counts:
            size = len(body) + OVERHEAD
            if fds:
                size += total_size(fds)
        self._out.append((body, fds, size))
        self.held += size
        self.queued += len(body)
        if len(self._out) > _QUEUE:
            self._end.pause()
        self._on_change(self)

    def ended(self) -> None:
        """Nothing more comes from this end."""
        self.over = True
        self._on_change(self)

    @property
    def can_send(self) -> bool:
        """Whether `next_packet` has one."""
        return bool(self._out) and self._credit > 0

    @property
    def waiting(self) -> int:
        """Messages that have not left this end."""
        return len(self._out)

    @property
    def behind(self) -> int:
        """`held`, but for what is being sent: that may be as large as it likes."""
        return self.held - self._out[0][2] if self._out else 0

    @property
    def finished(self) -> bool:
        """Whether everything that came from this end has been taken, and no more will come."""
        return self.over and not self._out

    def next_packet(self) -> Output:
        """The next packet that this channel sends; only while `can_send`."""
        body, fds, size = self._out[0]
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
        self.queued -= len(body)
        self.held -= size
        if len(self._out) <= _QUEUE:
            self._end.resume()
        self._credit -= len(body)
        return Kind.FRAME, body

    def grant(self, credit: int) -> None:
        """The other end can take that many bytes more."""
        self._credit += credit

    # --- from the link to this end

    def take(self, kind: Kind, body: bytes) -> None:
        """A packet of this channel. Raises ProtocolError for what cannot be, and OSError where there is no memory, or
        no descriptor, for what it brings: then a part of a message is missing, and the channel is of no more use."""
        self._owed += len(body)
        if self._owed > WINDOW + MAX_BODY:  # the last packet may be larger than what was left
            raise ProtocolError(f"{self._owed:,} bytes came on a channel for {WINDOW:,}")
        if self.over:
            return  # nobody takes it
        if kind is Kind.FRAME:
            fds, self._incoming = tuple(self._incoming), []
            self.arriving = 0
            for fd in fds:
                os.lseek(fd, 0, os.SEEK_SET)
            self._end.send(msgspec.Raw(body), fds)
        elif kind is Kind.FILE:
            if len(self._incoming) == MAX_DESCRIPTORS:
                raise ProtocolError(f"more than {MAX_DESCRIPTORS} files came with one message")
            self._incoming.append(new_memory())
        elif self._incoming:
            _write(self._incoming[-1], body)
            self.arriving += len(body)
        else:
            raise ProtocolError("a piece of no file")

    @property
    def is_owing(self) -> bool:
        """Whether the other end is to be told of what was passed on, as soon as that is so."""
        return self._owed >= _GRANT

    def credit(self) -> int:
        """How many bytes the other end may send in place of those that were passed on. A client that does not read is
        given no more; where this end has closed, what comes counts as passed on, or both ends might wait to be."""
        if not self.is_owing or (self._end.buffered and not self.over):
            return 0
        owed, self._owed = self._owed, 0
        return owed

    def _drained(self) -> None:
        if self.closing:
            self.close()
        else:
            self._on_change(self)

    def finish(self) -> None:
        """The other end has closed: this one does, once what came before is passed on. Nobody takes what waits here."""
        self.closing = True
        if not self.over:
            self._end.flush()
        if self.over or not self._end.buffered:
            self.close()

    def close(self) -> None:
        """Lets go of this end and of all that waits."""
        self._end.close()
        descriptors.close_all(self._incoming)
        self._incoming.clear()
        self.arriving = 0
        for _, fds, _ in self._out:
            descriptors.close_all(fds)
        self._out.clear()
        self.queued = self.held = 0


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
