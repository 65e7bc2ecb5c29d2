"""One end of a link: its channels, and the stream that carries them for the time being."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from farcall.errors import ProtocolError
from farcall.link import packets
from farcall.link.channel import Channel, Connect
from farcall.link.packets import Kind, Packet, PacketDecoder, Session
from farcall.wire.transport import flush_soon, reading

_AHEAD = 1 << 18  # bytes given to the stream that it has not passed on: what an urgent packet waits behind
_KEPT = 32 << 20  # bytes sent and not acknowledged, above which nothing more is sent
_ACK_BYTES = 1 << 18  # received, after which that is acknowledged at once
_ACK_SECONDS = 0.05  # after which it is in any case


class Stream(Protocol):
    """What a link runs over: the ends of a pipe, a socket."""

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Calls `take` with what comes, and returns at the end. Raises what `take` raises."""
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

    `dial` gives this end of a channel that the other end opens; it is None at the end that opens them.
    """

    def __init__(self, session_id: bytes, dial: Callable[[], Connect] | None = None) -> None:
        self._loop: asyncio.AbstractEventLoop  # where it runs
        self._session = Session(session_id)
        self._dial = dial
        self._channels: dict[int, Channel] = {}
        self._ready: deque[Channel] = deque()  # that have something to send, each once
        self._queued: set[int] = set()
        self._next = 1
        self._stream: Stream | None = None
        self._pending: list[bytes] = []  # packets that leave together
        self._flushing = False
        self._work = asyncio.Event()
        self._progress = asyncio.Event()  # something was confirmed, a channel has ended, or the stream
        self._unacknowledged = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self.heard = 0.0  # the loop's time when the other end last sent something
        self.said_bye = False  # the other end opens no more channels

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self._channels)

    @property
    def unsent(self) -> int:
        """Bytes in memory for what the other end has not taken. What is being sent does not count, nor what was read
        so as not to."""
        stream = self._stream
        waiting = 0 if stream is None else stream.waiting()
        return waiting + self._session.kept_bytes + sum(one.behind for one in self._channels.values())

    @property
    def arriving(self) -> int:
        """Bytes in memory of messages that have not come whole."""
        return sum(one.arriving for one in self._channels.values())

    @property
    def is_linked(self) -> bool:
        """Whether there is a stream."""
        return self._stream is not None

    async def confirmed(self) -> None:
        """Returns when the other end has confirmed all that was sent, or when there is no stream."""
        await self._until(lambda: not self.is_linked or not self._session.kept_bytes)

    async def deliver_closed(self) -> None:
        """Returns when the other end has confirmed all that this end had to say on the channels that it has closed,
        over however many streams that takes."""
        await self._until(lambda: not any(channel.over for channel in self._channels.values()))
        sent = self._session.sent
        await self._until(lambda: self._session.acknowledged >= sent)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()

    def open(self, connect: Connect) -> Channel:
        """A client has connected at this end."""
        number, self._next = self._next, self._next + 1
        channel = self._channels[number] = Channel(number, connect, self._changed)
        self._urgent(Kind.OPEN, number)
        return channel

    def bye(self) -> None:
        """No channel will be opened any more."""
        self._urgent(Kind.BYE)

    def ping(self) -> None:
        """Asks for a sign of life, by giving one."""
        self._write(packets.encode(Kind.PING))

    def close(self) -> None:
        """Ends all channels."""
        for channel in list(self._channels.values()):
            channel.close()
        self._channels.clear()
        self._progress.set()

    async def run(self, stream: Stream) -> None:
        """Carries the channels over this stream until it ends. Raises ProtocolError where it is none of this link."""
        decoder = PacketDecoder()
        self._loop = asyncio.get_running_loop()
        stream.write(self._session.hello())
        tasks = [
            asyncio.ensure_future(self._send(stream)),
            asyncio.ensure_future(stream.deliver(lambda data: self._arrived(stream, decoder, data))),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except OSError as error:  # of the stream
            logging.getLogger("farcall.link").info("the stream broke: %s", error)
        finally:
            self._stream = None
            self._progress.set()
            self._pending.clear()  # what was numbered is kept
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- out

    def _urgent(self, kind: Kind, channel: int = 0, body: bytes = b"") -> None:
        """Sends a packet ahead of what waits in channels. Without a stream it is kept until there is one."""
        self._write(self._session.number(kind, channel, body))

    def _write(self, packet: bytes) -> None:
        """Sends a packet with those that leave at the same time. Without a stream nothing is sent."""
        if self._stream is None:
            return
        self._pending.append(packet)
        if not self._flushing:
            self._flushing = True
            flush_soon(self)

    def flush(self) -> None:
        """Gives the stream what waits to leave together."""
        self._flushing = False
        if self._stream is not None and self._pending:
            self._stream.write(b"".join(self._pending))
        self._pending.clear()

    def _changed(self, channel: Channel) -> None:
        if channel.number not in self._channels or channel.number in self._queued:
            return
        stream = self._stream
        if (
            not self._ready
            and stream is not None
            and self._session.kept_bytes < _KEPT
            and not stream.waiting()
            and not channel.is_owing  # what has just come is passed on in this turn, and counts in the next
        ):
            self._send_of(channel)  # nobody is before it: no turn of the loop is waited for
            return
        self._queue(channel)

    def _queue(self, channel: Channel) -> None:
        self._queued.add(channel.number)
        self._ready.append(channel)
        self._work.set()

    async def _send(self, stream: Stream) -> None:
        while True:
            while self._stream is stream and self._ready and self._session.kept_bytes < _KEPT:
                if stream.waiting() > _AHEAD:
                    await stream.drain()
                    continue
                channel = self._ready.popleft()
                self._queued.discard(channel.number)
                self._send_of(channel)
                self.flush()
            self._work.clear()
            await self._work.wait()

    def _send_of(self, channel: Channel) -> None:
        """One packet of a channel, which then waits behind the others."""
        if self._channels.get(channel.number) is not channel:
            return
        if credit := channel.credit():
            self._urgent(Kind.CREDIT, channel.number, packets.counted(credit))
        if channel.can_send:
            kind, body = channel.next_packet()
            self._write(self._session.number(kind, channel.number, body))
        if channel.can_send and channel.number not in self._queued:
            self._queue(channel)
        elif channel.finished and not channel.can_send:
            del self._channels[channel.number]
            self._progress.set()
            channel.close()
            if not channel.closing:
                self._urgent(Kind.CLOSE, channel.number)

    # --- in

    def _arrived(self, stream: Stream, decoder: PacketDecoder, data: bytes) -> None:
        arrived = decoder.add(data)
        self.heard = self._loop.time()
        if self._stream is None and arrived:
            for packet in self._session.resume(arrived.pop(0)):
                stream.write(packet)
            self._stream = stream
            self._work.set()
            self._progress.set()
        with reading():
            self._take(arrived)

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
                self._progress.set()
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
            self._ack_timer = self._loop.call_later(_ACK_SECONDS, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._unacknowledged = 0
        self._write(packets.encode(Kind.ACK, body=packets.counted(self._session.received)))

    def _handle(self, packet: Packet) -> None:
        if packet.kind is Kind.OPEN:
            self._open(packet.channel)
            return
        if packet.kind is Kind.BYE:
            self.said_bye = True
            return
        channel = self._channels.get(packet.channel)
        if channel is None:
            return  # closed here, which the other end does not know yet
        if packet.kind is Kind.CREDIT:
            channel.grant(packets.count(packet.body))  # for what was said before this end closed, too
        elif packet.kind is Kind.CLOSE:
            channel.finish()
        else:
            try:
                channel.take(packet.kind, packet.body)
            except OSError as error:  # it costs this connection, and no other
                logging.getLogger("farcall.link").error("channel %d is given up: %s", channel.number, error)
                del self._channels[channel.number]
                self._progress.set()
                channel.close()
                self._urgent(Kind.CLOSE, channel.number)

    def _open(self, number: int) -> None:
        if self._dial is None or number in self._channels:
            raise ProtocolError(f"channel {number} cannot be opened")
        try:
            connect = self._dial()
        except OSError as error:
            logging.getLogger("farcall.link").error("the server cannot be reached: %s", error)
            self._urgent(Kind.CLOSE, number)
            return
        self._channels[number] = Channel(number, connect, self._changed)
