"""What a caller is told where the server ends between two messages of one call: that its code may have run."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from farcall.errors import ConnectionLostError
from farcall.sdk import calls, client, generators, values
from farcall.sdk.maps import CHUNK_INPUTS, MapCall
from farcall.wire import messages
from farcall.wire.connection import Connection
from farcall.wire.frames import FrameDecoder, FrameEncoder

TARGET = calls.Target("fu-1", "", b"", "f")


class EndingServer:
    """One that answers a single message, and ends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.answer: Callable[[Any], Any] | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder = FrameDecoder(messages.FromClient)
        with self._sock:
            while (taken := decoder.take()) is None and (data := self._sock.recv(65536)):
                decoder.add(data)
            if taken is not None and self.answer is not None:
                self._sock.sendall(FrameEncoder().encode(self.answer(taken[0])))
        self.ended.set()

    def join(self) -> None:
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndingServer]:
    ours, theirs = socket.socketpair()
    here = client.Client()
    here.connection = Connection(ours, messages.ToClient, here.handle, here.lose)
    here.map_memory = 2**20
    monkeypatch.setattr(client, "_current", here)
    ending = EndingServer(theirs)
    yield ending
    here.connection.close()
    ending.join()


def test_a_generator_gives_what_has_come_and_then_says_so(server: EndingServer) -> None:
    nothing = values.dumps(None).data
    count = messages.GENERATOR_WINDOW
    server.answer = lambda submit: messages.Items(submit.call_id, 0, 0, [nothing] * count)
    items = generators.run(TARGET, (), {})
    assert next(items) is None
    server.ended.wait()
    assert [next(items) for _ in range(count - 1)] == [None] * (count - 1)
    with pytest.raises(ConnectionLostError, match="while the generator f was running") as caught:
        next(items)
    assert caught.value.may_have_run


def test_a_map_of_which_inputs_had_been_sent(server: EndingServer) -> None:
    call = MapCall(TARGET, {}, ordered=True, return_exceptions=False, total=None)
    chunker = call.chunker()
    for index in range(CHUNK_INPUTS):
        if chunk := chunker.add(index, (index,)):
            call.send(chunk)
    server.ended.wait()
    chunker.add(CHUNK_INPUTS, (1,))
    with pytest.raises(ConnectionLostError, match="64 inputs may or may not have run") as caught:
        call.send(chunker.rest())
    assert caught.value.may_have_run


def test_a_map_of_which_nothing_was_sent(server: EndingServer) -> None:
    call = MapCall(TARGET, {}, ordered=True, return_exceptions=False, total=None)
    call.client.connection.send(messages.ServerStatus(1))
    server.ended.wait()
    chunker = call.chunker()
    chunker.add(0, (1,))
    with pytest.raises(ConnectionLostError) as caught:
        call.send(chunker.rest())
    assert not caught.value.may_have_run


def test_a_spawned_map_of_which_a_part_is_acknowledged(server: EndingServer) -> None:
    server.answer = lambda spawn: messages.Done(spawn.seq)

    def inputs() -> Iterator[int]:
        yield from range(CHUNK_INPUTS)
        server.ended.wait()
        yield from range(CHUNK_INPUTS)

    with pytest.raises(ConnectionLostError) as caught:
        calls.spawn_map(TARGET, [inputs()], {})
    assert caught.value.may_have_run
