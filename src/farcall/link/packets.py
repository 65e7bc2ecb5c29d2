"""What travels on a link, and what survives its being cut.

A packet is a header (kind, channel, length) and a body of at most `MAX_BODY` bytes. Both ends count the packets of the
numbered kinds, which stay with their sender until the other end says that it has them: a link that is cut and made
again goes on where it was, with nothing lost and nothing twice. Each stream begins with a `HELLO` from both ends.
No I/O.
"""

from __future__ import annotations

import struct
from collections import deque
from enum import IntEnum
from typing import NamedTuple

from farcall.errors import ProtocolError

PROTOCOL = 1
MAX_BODY = 1 << 20  # bytes; a frame of the wire fits
_OVERHEAD = 64  # bytes that a packet takes which is kept, beyond its own
CHUNK = 64 * 1024  # bytes of a file in one packet: what an urgent packet may have to wait for

_HEADER = struct.Struct("<BII")
_HELLO = struct.Struct("<16sQ")
_COUNT = struct.Struct("<Q")


class Kind(IntEnum):
    """Up to `BYE` they are numbered, and arrive once and in order however often the link is made again."""

    OPEN = 1  # a client has connected
    FILE = 2  # the next descriptor's file begins
    CHUNK = 3  # bytes of it
    FRAME = 4  # a message; the files since the last one are its descriptors'
    CLOSE = 5  # the client, or the server, has closed its connection
    CREDIT = 6  # body: how many bytes more this channel may send
    BYE = 7  # no channel will be opened any more
    ACK = 32  # body: how many numbered packets have arrived
    PING = 33
    HELLO = 34  # body: session, and how many numbered packets have arrived; `channel` is the protocol's version


_KINDS = {int(kind): kind for kind in Kind}


class Packet(NamedTuple):
    kind: Kind
    channel: int
    body: bytes


def encode(kind: Kind, channel: int = 0, body: bytes | bytearray | memoryview = b"") -> bytes:
    """One packet."""
    return b"".join((_HEADER.pack(kind, channel, len(body)), body))


def count(body: bytes) -> int:
    """The number in an `ACK` or `CREDIT`."""
    if len(body) != _COUNT.size:
        raise ProtocolError(f"a count of {len(body)} bytes")
    return _COUNT.unpack(body)[0]


def counted(number: int) -> bytes:
    """The body of an `ACK` or `CREDIT`."""
    return _COUNT.pack(number)


class PacketDecoder:
    """Packets out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> list[Packet]:
        """All packets that are whole with `data`. Raises ProtocolError where the stream is not a link's."""
        buffer = self._buffer
        is_begun = bool(buffer)
        if is_begun:
            buffer += data
        whole = buffer if is_begun else data  # nearly always they come whole
        packets: list[Packet] = []
        offset = 0
        while len(whole) - offset >= _HEADER.size:
            number, channel, length = _HEADER.unpack_from(whole, offset)
            if length > MAX_BODY:
                raise ProtocolError(f"a packet of {length:,} bytes")
            end = offset + _HEADER.size + length
            if len(whole) < end:
                break
            kind = _KINDS.get(number)
            if kind is None:
                raise ProtocolError(f"a packet of kind {number}")
            packets.append(Packet(kind, channel, bytes(whole[offset + _HEADER.size : end])))
            offset = end
        if is_begun:
            del buffer[:offset]
        else:
            buffer += data[offset:]
        return packets


class Session:
    """One end's memory of a link, over all the streams that it has been."""

    def __init__(self, session_id: bytes) -> None:
        self.id = session_id
        self.received = 0  # numbered packets
        self.kept_bytes = 0
        self._kept: deque[bytes] = deque()
        self.acknowledged = 0  # of those that were sent

    def hello(self) -> bytes:
        """What a stream begins with."""
        return encode(Kind.HELLO, PROTOCOL, _HELLO.pack(self.id, self.received))

    def number(self, kind: Kind, channel: int = 0, body: bytes | bytearray | memoryview = b"") -> bytes:
        """A numbered packet, which is kept until it is acknowledged."""
        packet = encode(kind, channel, body)
        self._kept.append(packet)
        self.kept_bytes += len(packet) + _OVERHEAD
        return packet

    @property
    def sent(self) -> int:
        """Numbered packets that there have been so far."""
        return self.acknowledged + len(self._kept)

    def acknowledge(self, received: int) -> None:
        """The other end has that many packets. Raises ProtocolError where it cannot."""
        if not self.acknowledged <= received <= self.acknowledged + len(self._kept):
            raise ProtocolError(f"{received} packets are said to have arrived of those that were sent")
        while self.acknowledged < received:
            self.acknowledged += 1
            self.kept_bytes -= len(self._kept.popleft()) + _OVERHEAD

    def resume(self, hello: Packet) -> list[bytes]:
        """What a new stream must carry first, after the other end's `HELLO`. Raises ProtocolError where that is of
        another version or session."""
        if hello.kind is not Kind.HELLO or len(hello.body) != _HELLO.size:
            raise ProtocolError("the stream does not begin as a link does")
        if hello.channel != PROTOCOL:
            raise ProtocolError(f"the other end speaks version {hello.channel} of a link's protocol, not {PROTOCOL}")
        session_id, received = _HELLO.unpack(hello.body)
        if session_id != self.id:
            raise ProtocolError("the other end is of another session")
        self.acknowledge(received)
        return list(self._kept)

    def receive(self, packet: Packet) -> bool:
        """Counts a packet that has arrived; whether it was a numbered one."""
        if packet.kind > Kind.BYE:
            return False
        self.received += 1
        return True
