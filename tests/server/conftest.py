"""A server to speak with in its own language: raw sockets, and no SDK between."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from farcall.settings import paths
from farcall.spec.container import Interpreter
from farcall.spec.function import AppSpec, FunctionSpec, MethodSpec, Scaling, Source
from farcall.wire import descriptors, messages
from farcall.wire.frames import FrameEncoder
from farcall.wire.incoming import Incoming
from tests.conftest import Installation


class Peer:
    """A client that sends what it likes."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self._encoder = FrameEncoder()
        self._incoming = Incoming(messages.ToClient)
        self._messages: list[Any] = []

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        self.sock.sendmsg([self._encoder.encode(message, len(fds))], descriptors.pack(fds) if fds else [])

    def receive(self) -> Any:
        """The next message. Raises EOFError where the server has ended the connection."""
        while not self._messages:
            data, ancillary, _, _ = self.sock.recvmsg(65536, descriptors.ANCILLARY_SPACE)
            if not data:
                raise EOFError
            self._incoming.add(memoryview(data), ancillary)
            while (taken := self._incoming.take()) is not None:
                message, fds = taken
                descriptors.close_all(fds)
                self._messages.append(message)
        return self._messages.pop(0)

    def ask(self, message: Any, fds: tuple[int, ...] = ()) -> Any:
        self.send(message, fds)
        return self.receive()

    def hello(self, protocol: int = messages.PROTOCOL_VERSION) -> messages.Welcome:
        return self.ask(messages.Hello(protocol, "0", "client", os.getpid()))


@pytest.fixture
def connect(server: Installation) -> Iterator[Callable[[], Peer]]:
    """Connects a new peer to the module's server."""
    peers: list[Peer] = []
    path = str(paths(server.environment).server_socket)

    def connect() -> Peer:
        peers.append(Peer(path))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.sock.close()


def app_spec(app_id: str, function_id: str) -> AppSpec:
    """An app with a function that never gets a container: its inputs wait until they are cancelled."""
    interpreter = Interpreter("/nowhere/python", "3.11.0", "cp311-linux_x86_64-gnu", (), "/nowhere")
    function = FunctionSpec(
        function_id, "f", Source("m", "f"), (MethodSpec(""),), interpreter, scaling=Scaling(max_containers=0)
    )
    return AppSpec(app_id, "test", "ephemeral", (function,))
