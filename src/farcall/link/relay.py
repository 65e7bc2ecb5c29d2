"""One end of a link: its channels, and the stream that carries them for the time being."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from farcall.errors import ProtocolError
from farcall.link import packets
from farcall.link.channel import Channel
from farcall.link.packets import Kind, Packet, PacketDecoder, Session

_READ = 1 << 18  # bytes of one read
_AHEAD = 1 << 18  # bytes given to the stream that it has not passed on: what an urgent packet waits behind
_KEPT = 32 << 20  # bytes sent and not acknowledged, above which nothing more is sent
_ACK_BYTES = 1 << 18  # received, after which that is acknowledged at once
_ACK_SECONDS = 0.05  # after which it is in any case


class Stream(Protocol):
    """What a link runs over: the ends of a pipe, a socket."""

    async def read(self, size: int) -> bytes:
        """Some bytes, b"" at the end."""
        ...

    def write(self, data: bytes) -> None: ...

    def waiting(self) -> int:
        """Bytes written that have not been passed on."""
        ...

    async def drain(self) -> None:
        """Returns when more can be written."""
        ...


class Relay:
    """Carries channels over streams that come and go.

    `dial` makes a socket for a channel that the other end opens; it is None at the end that opens them.
    """

    def __init__(self, session_id: bytes, dial: Callable[[], socket.socket] | None = None) -> None:
        self._session = Session(session_id)
        self._dial = dial
        self._channels: dict[int, Channel] = {}
        self._ready: deque[Channel] = deque()  # that have something to send, each once
        self._queued: set[int] = set()
        self._next = 1
        self._stream: Stream | None = None
        self._work = asyncio.Event()
        self._unacknowledged = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self.heard = 0.0  # the loop's time when the other end last sent something
        self.said_bye = False  # the other end opens no more channels

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self._channels)

    def open(self, sock: socket.socket) -> None:
        """A client has connected at this end."""
        number, self._next = self._next, self._next + 1
        self._channels[number] = Channel(number, sock, self._changed)
        self._urgent(Kind.OPEN, number)

    def bye(self) -> None:
        """No channel will be opened any more."""
        self._urgent(Kind.BYE)

    def ping(self) -> None:
        """Asks for a sign of life, by giving one."""
        if self._stream is not None:
            self._stream.write(packets.encode(Kind.PING))

    def close(self) -> None:
        """Ends all channels."""
        for channel in list(self._channels.values()):
            channel.close()
        self._channels.clear()

    async def run(self, stream: Stream) -> None:
        """Carries the channels over this stream until it ends. Raises ProtocolError where it is none of this link."""
        loop = asyncio.get_running_loop()
        decoder = PacketDecoder()
        stream.write(self._session.hello())
        arrived: list[Packet] = []
        while not arrived:
            data = await stream.read(_READ)
            if not data:
                return
            arrived = decoder.add(data)
        for packet in self._session.resume(arrived.pop(0)):
            stream.write(packet)
        self.heard = loop.time()
        self._stream = stream
        tasks = [
            asyncio.ensure_future(self._send(stream)),
            asyncio.ensure_future(self._receive(stream, decoder, arrived)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except OSError as error:  # of the stream
            logging.getLogger("farcall.link").info("the stream broke: %s", error)
        finally:
            self._stream = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- out

    def _urgent(self, kind: Kind, channel: int = 0, body: bytes = b"") -> None:
        """Sends a packet ahead of what waits in channels. Without a stream it is kept until there is one."""
        packet = self._session.number(kind, channel, body)
        if self._stream is not None:
            self._stream.write(packet)

    def _changed(self, channel: Channel) -> None:
        if channel.number in self._channels and channel.number not in self._queued:
            self._queued.add(channel.number)
            self._ready.append(channel)
            self._work.set()

    async def _send(self, stream: Stream) -> None:
        while True:
            while self._ready and self._session.kept_bytes < _KEPT:
                if stream.waiting() > _AHEAD:
                    await stream.drain()
                    continue
                channel = self._ready.popleft()
                self._queued.discard(channel.number)
                self._send_of(channel, stream)
            self._work.clear()
            await self._work.wait()

    def _send_of(self, channel: Channel, stream: Stream) -> None:
        """One packet of a channel, which then waits behind the others."""
        if self._channels.get(channel.number) is not channel:
            return
        if credit := channel.credit():
            self._urgent(Kind.CREDIT, channel.number, packets.counted(credit))
        if channel.can_send:
            kind, body = channel.next_packet()
            stream.write(self._session.number(kind, channel.number, body))
        if channel.can_send:
            self._changed(channel)
        elif channel.finished:
            del self._channels[channel.number]
            channel.close()
            if not channel.closing:
                self._urgent(Kind.CLOSE, channel.number)

    # --- in

    async def _receive(self, stream: Stream, decoder: PacketDecoder, arrived: list[Packet]) -> None:
        self._take(arrived)
        while data := await stream.read(_READ):
            self.heard = asyncio.get_running_loop().time()
            self._take(decoder.add(data))

    def _take(self, arrived: list[Packet]) -> None:
        touched: set[int] = set()
        for packet in arrived:
            if self._session.receive(packet):
                self._unacknowledged += len(packet.body) + 16
                touched.add(packet.channel)
                self._handle(packet)
            elif packet.kind is Kind.ACK:
                self._session.acknowledge(packets.count(packet.body))
                self._work.set()
            elif packet.kind is Kind.PING:
                self._acknowledge()
            elif packet.kind is Kind.HELLO:
                raise ProtocolError("a second HELLO on one stream")
        for number in touched:
            if (channel := self._channels.get(number)) is not None:
                self._changed(channel)  # it may owe credit
        if self._unacknowledged >= _ACK_BYTES:
            self._acknowledge()
        elif self._unacknowledged and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(_ACK_SECONDS, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._unacknowledged = 0
        if self._stream is not None:
            self._stream.write(packets.encode(Kind.ACK, body=packets.counted(self._session.received)))

    def _handle(self, packet: Packet) -> None:
        if packet.kind is Kind.OPEN:
            self._open(packet.channel)
            return
        if packet.kind is Kind.BYE:
            self.said_bye = True
            return
        channel = self._channels.get(packet.channel)
        if channel is None or channel.over:
            return  # closed here, which the other end does not know yet
        if packet.kind is Kind.CREDIT:
            channel.grant(packets.count(packet.body))
        elif packet.kind is Kind.CLOSE:
            channel.finish()
        else:
            channel.take(packet.kind, packet.body)

    def _open(self, number: int) -> None:
        if self._dial is None or number in self._channels:
            raise ProtocolError(f"channel {number} cannot be opened")
        try:
            sock = self._dial()
        except OSError as error:
            logging.getLogger("farcall.link").error("the server cannot be reached: %s", error)
            self._urgent(Kind.CLOSE, number)
            return
        self._channels[number] = Channel(number, sock, self._changed)
