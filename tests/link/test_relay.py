"""Two ends of a link in one process, with real sockets: messages, descriptors, cuts, slow readers."""

import asyncio
import errno
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from farcall.errors import ProtocolError
from farcall.link import channel as channels
from farcall.link.channel import WINDOW, Channel, Connect, over_socket
from farcall.link.packets import MAX_BODY, Kind
from farcall.link.relay import Relay
from farcall.link.stream import LIMIT, PipeStream
from farcall.wire.descriptors import close_all
from farcall.wire.frames import MAX_DESCRIPTORS
from farcall.wire.memory import from_memory, to_memory
from farcall.wire.transport import Transport
from tests.conftest import open_descriptors

Received = list[tuple[int, list[bytes]]]


class Peer:
    """A client or a server, on a socket: what it has received, with what its descriptors held."""

    def __init__(self, sock: socket.socket) -> None:
        self.received: Received = []
        self.closed = asyncio.Event()
        self.changed = asyncio.Event()
        self.transport = Transport(sock, int, self._take, self.closed.set)

    def _take(self, message: int, fds: tuple[int, ...]) -> None:
        self.received.append((message, [from_memory(fd) for fd in fds]))
        close_all(fds)
        self.changed.set()

    def send(self, message: int, files: list[bytes]) -> None:
        self.transport.send(message, [to_memory(data) for data in files])

    async def has(self, count: int) -> None:
        while len(self.received) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)


class Link:
    """Both ends, over streams that `cut` ends; the ends connect again by themselves."""

    def __init__(self) -> None:
        self.clients: list[Peer] = []
        self.servers: list[Peer] = []
        self.dialled = asyncio.Event()
        session = os.urandom(16)
        self.near = Relay(session)
        self.far = Relay(session, self._dial)
        self._writers: list[asyncio.StreamWriter] = []
        self.cuts = 0

    def _dial(self) -> Connect:
        ours, theirs = socket.socketpair()
        self.servers.append(Peer(ours))
        self.dialled.set()
        return over_socket(theirs)

    def client(self) -> Peer:
        ours, theirs = socket.socketpair()
        self.near.open(over_socket(theirs))
        self.clients.append(Peer(ours))
        return self.clients[-1]

    def cut(self) -> None:
        """What is under way is lost."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def stay_linked(self) -> None:
        while True:
            pair = socket.socketpair()
            streams = [await asyncio.open_unix_connection(sock=sock, limit=LIMIT) for sock in pair]
            self._writers = [writer for _, writer in streams]
            ends = zip((self.near, self.far), streams, strict=True)
            try:
                await asyncio.gather(*(relay.run(PipeStream(*stream)) for relay, stream in ends))
            finally:
                for writer in self._writers:
                    writer.transport.abort()


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    link = Link()
    task = asyncio.ensure_future(link.stay_linked())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for end in (link.near, link.far):
            end.close()
        for peer in (*link.clients, *link.servers):
            peer.transport.close()


def run(test: Callable[[Link], Awaitable[None]]) -> None:
    async def main() -> None:
        async with linked() as link:
            await test(link)

    gc.collect()  # what earlier tests have left to it may be descriptors, too
    before = open_descriptors()
    asyncio.run(main())
    gc.collect()
    assert open_descriptors() <= before


async def server_of(link: Link, count: int = 1) -> Peer:
    while len(link.servers) < count:
        link.dialled.clear()
        await asyncio.wait_for(link.dialled.wait(), 60)
    return link.servers[count - 1]


def test_messages_and_files_arrive_both_ways() -> None:
    async def test(link: Link) -> None:
        client = link.client()
        server = await server_of(link)
        sent: Received = [(1, []), (2, [b"small"]), (3, [b"", b"x" * 3_000_000, b"y"]), (4, [])]
        for message, files in sent:
            client.send(message, files)
            server.send(-message, files[::-1])
        await server.has(4)
        await client.has(4)
        assert server.received == sent
        assert client.received == [(-message, files[::-1]) for message, files in sent]
        client.transport.close()
        await asyncio.wait_for(server.closed.wait(), 60)

    run(test)


def test_what_was_said_before_a_close_is_waited_for_over_cuts() -> None:
    async def test(link: Link) -> None:
        await asyncio.wait_for(link.near.deliver_closed(), 60)  # nothing is to be waited for
        client = link.client()
        server = await server_of(link)
        client.send(1, [b"x" * (3 * WINDOW)])
        client.transport.close(after_flush=True)
        delivering = asyncio.ensure_future(link.near.deliver_closed())
        for _ in range(3):
            await asyncio.sleep(0.01)
            link.cut()
        await asyncio.wait_for(delivering, 60)
        await server.has(1)
        assert link.near.channels == 0

    run(test)


def test_what_was_said_last_is_confirmed_or_the_stream_is_gone() -> None:
    async def test(link: Link) -> None:
        link.client()
        server = await server_of(link)
        for _ in range(20):
            link.clients[0].send(1, [b"x" * 1000])
        await server.has(1)
        link.near.bye()
        assert not link.far.said_bye
        waiting = [asyncio.ensure_future(link.near.confirmed()) for _ in range(2)]
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert link.far.said_bye, "the other end has it"
        await asyncio.wait_for(link.near.confirmed(), 60)  # nothing is to be waited for
        link.near.ping()
        link.near.bye()
        waiting = [asyncio.ensure_future(link.near.confirmed()) for _ in range(2)]
        link.cut()
        await asyncio.wait_for(asyncio.gather(*waiting), 60)

    run(test)


def test_either_side_may_close_with_messages_on_the_way() -> None:
    async def test(link: Link) -> None:
        client = link.client()
        server = await server_of(link)
        for number in range(1000):
            server.send(number, [b"z" * 1000] if number % 100 == 0 else [])
        server.transport.close(after_flush=True)
        await asyncio.wait_for(client.closed.wait(), 60)
        got = len(client.received)  # what did not fit the socket's buffer was never sent
        assert got > 0
        assert [message for message, _ in client.received] == list(range(got))
        assert link.near.channels == link.far.channels == 0

    run(test)


def test_a_link_that_is_cut_again_and_again_loses_nothing(rng: random.Random) -> None:
    async def test(link: Link) -> None:
        clients = [link.client() for _ in range(3)]
        servers = [await server_of(link, count + 1) for count in range(3)]
        sent: list[Received] = [[] for _ in range(6)]
        pairs = [*zip(clients, servers, strict=True), *zip(servers, clients, strict=True)]
        for number in range(300):
            for (sender, _), record in zip(pairs, sent, strict=True):
                files = [rng.randbytes(rng.choice((10, 1000, 200_000))) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
                record.append((number, files))
                sender.send(number, files)
            if rng.random() < 0.1:
                link.cut()
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        for (_, receiver), record in zip(pairs, sent, strict=True):
            await receiver.has(300)
            assert receiver.received == record
        assert link.cuts > 5

    run(test)


def test_a_client_that_does_not_read_holds_back_its_server_and_nobody_else() -> None:
    async def test(link: Link) -> None:
        slow = link.client()
        slow_server = await server_of(link)
        quick = link.client()
        quick_server = await server_of(link, 2)
        slow.transport.pause()
        count = 4 * WINDOW // 60_000
        slow.transport.on_drained = None
        payload = msgspec.Raw(msgspec.msgpack.encode(bytes(60_000)))
        for _ in range(count):
            slow_server.transport.send(payload)
        for number in range(100):
            quick_server.send(number, [b"data"])
        await quick.has(100)
        # The rest waits where it was sent from: the far end has not even read it.
        assert slow_server.transport.buffered > WINDOW
        assert slow.received == []

    run(test)


@pytest.mark.parametrize("together", [1, 10])
def test_a_client_that_only_reads_is_sent_more_than_the_window(together: int) -> None:
    async def test(link: Link) -> None:
        client = link.client()
        server = await server_of(link)
        payload = msgspec.Raw(msgspec.msgpack.encode(bytes(60_000)))
        for count in range(together, 3 * WINDOW // 60_000, together):
            for _ in range(together):
                server.transport.send(payload)
            await client.has(count)

    run(test)


def test_a_server_that_cannot_be_reached_closes_the_clients_connection() -> None:
    async def test(link: Link) -> None:
        def refuse() -> socket.socket:
            raise ConnectionRefusedError

        link.far._dial = refuse  # pyright: ignore
        client = link.client()
        await asyncio.wait_for(client.closed.wait(), 60)
        assert link.near.channels == 0

    run(test)


def test_what_waits_for_a_client_that_has_gone_is_let_go() -> None:
    async def test(link: Link) -> None:
        client = link.client()
        server = await server_of(link)
        client.transport.pause()
        for number in range(50):
            server.send(number, [bytes(1_000_000)])
        await asyncio.sleep(0)
        client.transport.close()
        await asyncio.wait_for(server.closed.wait(), 60)
        assert link.near.channels == 0

    run(test)


def test_both_sides_may_close_with_more_on_the_way_than_the_window() -> None:
    async def test(link: Link) -> None:
        client = link.client()
        server = await server_of(link)
        for peer in (client, server):
            peer.send(1, [b"x" * (3 * WINDOW)])
            peer.transport.close(after_flush=True)
        async with asyncio.timeout(60):
            while link.near.channels or link.far.channels:  # noqa: ASYNC110 - a link tells nobody
                await asyncio.sleep(0.01)

    run(test)


def test_what_one_message_cannot_be_taken_for_costs_its_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(link: Link) -> None:
        unlucky, lucky = link.client(), link.client()
        servers = [await server_of(link, count + 1) for count in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(channels, "new_memory", refuse)
            unlucky.send(1, [b"data"])
            await asyncio.wait_for(unlucky.closed.wait(), 60)
        lucky.send(2, [b"data"])
        await servers[1].has(1)
        assert servers[0].received == []
        assert servers[0].closed.is_set()
        assert link.near.channels == link.far.channels == 1

    def refuse() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    run(test)


def test_who_sends_more_than_it_may_is_refused() -> None:
    async def test(link: Link) -> None:
        for kind, size, allowed in (
            (Kind.CHUNK, MAX_BODY, WINDOW // MAX_BODY + 1),
            (Kind.FILE, 0, MAX_DESCRIPTORS - 1),
        ):
            ours, theirs = socket.socketpair()
            channel = Channel(1, over_socket(theirs), lambda _: None)
            channel.take(Kind.FILE, b"")
            for _ in range(allowed):
                channel.take(kind, bytes(size))
            with pytest.raises(ProtocolError):
                channel.take(kind, bytes(size))
            channel.close()
            ours.close()

    run(test)
