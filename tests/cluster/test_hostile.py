"""Workers that do what no worker does: the server gives them up before they take its memory, and keeps the others."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farcall.cluster import contents as contents_module
from farcall.cluster import ends
from farcall.cluster import machine as machine_module
from farcall.link import packets, relay
from farcall.link.packets import Kind
from farcall.link.stream import SocketStream
from farcall.wire import cluster
from tests.cluster.listening import SESSION, Port, Run
from tests.conftest import open_descriptors

CONTROL, CONTENTS = 1, 2  # channels
ROOM = 4 << 20  # bytes, which the server lets wait
_encode = msgspec.msgpack.Encoder().encode

Flood = Callable[["Hostile"], Coroutine[Any, Any, None]]


class Hostile:
    """A worker that has been welcomed, sends what it likes, and reads nothing."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._is_over = False
        self.send(packets.Session(SESSION).hello())

    def send(self, *data: bytes) -> None:
        self._stream.write(b"".join(data))

    async def go_on(self) -> bool:
        """Whether it can send more; returns when it can."""
        await asyncio.sleep(0)
        await self._stream.drain()
        return not self._stream._closed.done()

    async def heartbeats(self) -> None:
        beat = packets.encode(Kind.FRAME, CONTROL, _encode(cluster.Heartbeat(1)))
        while await self.go_on():
            self.send(*[beat] * 1000)

    async def pings(self) -> None:
        while await self.go_on():
            self.send(*[packets.encode(Kind.PING)] * 1000)

    async def requests(self) -> None:
        asks = packets.encode(Kind.FRAME, CONTENTS, _encode(cluster.ReadContent(1, "trees/" + "0" * 64)))
        while await self.go_on():
            self.send(*[asks] * 1000)

    async def endless_value(self) -> None:
        self.send(packets.encode(Kind.FILE, CONTROL))
        piece = packets.encode(Kind.CHUNK, CONTROL, bytes(packets.CHUNK))
        while await self.go_on():
            self.send(piece)

    async def no_messages(self) -> None:
        while await self.go_on():
            self.send(packets.encode(Kind.FRAME, CONTROL, b"none"))

    async def misplaced_messages(self) -> None:
        beat = packets.encode(Kind.FRAME, CONTENTS, _encode(cluster.Heartbeat(1)))
        while await self.go_on():
            self.send(beat)


@pytest.mark.parametrize(
    ("flood", "why"),
    [
        (Hostile.heartbeats, "it does not take what it is sent"),
        (Hostile.pings, "it does not take what it is sent"),
        (Hostile.requests, "it asks for content and does not wait"),
        (Hostile.endless_value, "it sends more than this machine has room for"),
        (Hostile.no_messages, "that are none, or had no place"),
        (Hostile.misplaced_messages, "that are none, or had no place"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_worker_that_would_take_all_memory_is_given_up(
    port: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flood: Flood, why: str
) -> None:
    """The log says why, once; another worker stays."""
    monkeypatch.setattr(machine_module, "_LEAST", ROOM)
    monkeypatch.setattr(machine_module, "UNSENT_PART", 1 << 60)
    monkeypatch.setattr(machine_module, "ARRIVING_PART", 1 << 60)

    async def test(port: Port) -> None:
        for name in ("honest", "hostile"):
            await port.enroll(name)
        await port.attach("honest")
        hostile = Hostile(await port.connect("hostile"))
        await asyncio.wait_for(flood(hostile), 60)
        [lost] = port.host.lost
        assert lost.name == "hostile"
        said = [one.getMessage() for one in caplog.records if "worker hostile is lost" in one.getMessage()]
        assert len(said) == 1 and why in said[0]
        assert len(caplog.records) <= 2 * ends.REFUSALS, "nor is the disk filled with lines of log"
        assert [one.name for one in port.listener.machines.values()] == ["honest"]

    port(test)


def test_descriptors_that_come_with_its_own_messages_are_closed(port: Run) -> None:
    async def test(port: Port) -> None:
        await port.enroll("hostile")
        hostile = Hostile(await port.connect("hostile"))
        before = memory_files()
        for _ in range(100):
            for channel, message in ((CONTROL, cluster.Heartbeat(1)), (CONTENTS, cluster.ReadContent(1, "none"))):
                frame = packets.encode(Kind.FRAME, channel, _encode(message))
                hostile.send(packets.encode(Kind.FILE, channel), packets.encode(Kind.CHUNK, channel, b"x"), frame)
        hostile.send(packets.encode(Kind.FRAME, CONTROL, _encode(cluster.Leaving())))
        [machine] = port.host.joined
        async with asyncio.timeout(60):
            while not machine.is_leaving:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
        assert memory_files() <= before

    port(test)


def memory_files() -> int:
    """Descriptors of this process that are of memory files."""
    return sum("memfd" in where for _, where in open_descriptors())


def test_answers_that_a_worker_leaves_unread_are_bounded(
    port: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On its own channel it gets small ones, each for a few bytes."""
    monkeypatch.setattr(machine_module, "UNSENT_MESSAGES", 1000)
    monkeypatch.setattr(relay, "_KEPT", 1 << 10)

    async def test(port: Port) -> None:
        await port.enroll("hostile")
        await asyncio.wait_for(Hostile(await port.connect("hostile")).heartbeats(), 60)
        assert [one.name for one in port.host.lost] == ["hostile"]
        assert "answers wait for it" in caplog.text

    port(test)


def test_blobs_are_read_as_far_as_a_worker_takes_them(
    port: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for many and takes none keeps few in memory; who then takes them gets all."""
    size = 300_000
    monkeypatch.setattr(contents_module, "_UNSENT", ROOM)
    monkeypatch.setattr(contents_module.Contents, "_read", lambda *_: bytes(size))
    monkeypatch.setattr(relay, "_KEPT", 1 << 20)
    most = ROOM + contents_module._AT_ONCE * (size + 1000)

    async def test(port: Port) -> None:
        await port.enroll("slow")
        stream = await port.connect("slow")
        hostile = Hostile(stream)
        await asyncio.sleep(0)
        [machine] = port.host.joined
        for number in range(200):
            hostile.send(packets.encode(Kind.FRAME, CONTENTS, _encode(cluster.ReadContent(number, "blob"))))
        content = machine._content
        async with asyncio.timeout(60):
            while content.held < ROOM:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert content.held <= most
        answers = 0
        received = 0
        decoder = packets.PacketDecoder()

        def take(data: bytes) -> None:
            nonlocal answers, received
            for packet in decoder.add(data):
                received += packet.kind <= Kind.BYE
                answers += packet.channel == CONTENTS and packet.kind is Kind.FRAME
                if packet.kind <= Kind.BYE and packet.channel == CONTENTS:
                    hostile.send(packets.encode(Kind.CREDIT, CONTENTS, packets.counted(len(packet.body))))
            hostile.send(packets.encode(Kind.ACK, body=packets.counted(received)))

        delivering = asyncio.ensure_future(stream.deliver(take))
        async with asyncio.timeout(60):
            while answers < 1 + 200:  # with the one that opens the channel
                assert content.held <= most
                await asyncio.sleep(0.01)
        assert not port.host.lost
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)

    port(test)
