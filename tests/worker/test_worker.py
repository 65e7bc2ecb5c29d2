"""The worker and its launcher."""

import asyncio
import os
import socket
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from farcall.content.store import Store
from farcall.launcher import messages
from farcall.launcher.client import ContainerFds, StartedContainer
from farcall.launcher.process import PROTOCOL_VERSION
from farcall.launcher.worker_link import SOCKET_NAME
from farcall.spec.container import ContainerSpec, Interpreter
from farcall.spec.function import FunctionSpec, Source
from farcall.version import __version__
from farcall.wire import messages as wire
from farcall.wire.frames import FrameDecoder, FrameEncoder
from farcall.worker.container import Container
from farcall.worker.filesystems import Filesystems
from farcall.worker.worker import Worker


def dying_launcher(state: Path) -> threading.Thread:
    """One that ends between its greeting and the first question, as one that is killed just then."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(state / SOCKET_NAME))
    listener.listen(1)

    def serve() -> None:
        with listener:
            channel, _ = listener.accept()
        with channel:
            channel.recv(1024)
            os.unlink(state / SOCKET_NAME)
            channel.send(msgspec.msgpack.encode(messages.Hello(PROTOCOL_VERSION, os.getpid())))
            assert b"List" in channel.recv(1024)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_launcher_that_is_killed_before_it_answers_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        filesystems = Filesystems(Store(tmp_path / "content"))
        worker = Worker(tmp_path, "sr-test", lambda container, stream, text: None, filesystems)
        await worker.open()
        await worker.close()

    thread = dying_launcher(tmp_path)
    asyncio.run(asyncio.wait_for(scenario(), 30))
    thread.join()


class LateLauncher:
    """One whose answer comes after the runner's first words, as on a busy machine."""

    def check(self, patience: float) -> None:
        """It lives."""

    async def start(self, spec: ContainerSpec, fds: ContainerFds) -> StartedContainer:
        runner = socket.socket(fileno=os.dup(fds.control))
        runner.setblocking(False)
        self.running = asyncio.create_task(_run(runner))
        for _ in range(20):  # turns, in which all is said and heard that is not held back for this answer
            await asyncio.sleep(0)
        return StartedContainer(spec.container_id, os.getpid(), os.dup(fds.control), {"forked": 0.0}, ["no cgroup"])


async def _run(runner: socket.socket) -> None:
    """A runner that loads what it is told to, at once."""
    loop, encode = asyncio.get_running_loop(), FrameEncoder().encode
    decoder = FrameDecoder(wire.ToRunner)
    with runner:
        await loop.sock_sendall(runner, encode(wire.Hello(wire.PROTOCOL_VERSION, __version__, "runner", 1)))
        while data := await loop.sock_recv(runner, 65536):
            decoder.add(data)
            while (taken := decoder.take()) is not None:
                if isinstance(taken[0], wire.Load):
                    await loop.sock_sendall(runner, encode(wire.Loaded(0.0)))


class Owner:
    def __init__(self) -> None:
        self.loaded: asyncio.Future[tuple[list[str], set[str]]] = asyncio.get_running_loop().create_future()

    def on_made(self, container: Container) -> None: ...

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        assert error is None
        self.loaded.set_result((container.notes, set(container.timeline)))


def test_what_the_launcher_tells_of_a_container_is_known_when_it_has_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = Interpreter(sys.executable, "3.11.2", "cp311-linux_x86_64-gnu", (), "/")
    function = FunctionSpec("fu-1", "f", Source("m", "f"), (), interpreter=interpreter)

    async def scenario() -> None:
        worker = Worker(tmp_path, "sr-test", lambda *_: None, Filesystems(Store(tmp_path / "content")))
        launcher = LateLauncher()

        async def connected() -> LateLauncher:
            return launcher

        monkeypatch.setattr(worker, "_connected", connected)
        owner = Owner()
        container = worker.start("ta-1", "ap-1", function, b"", owner)  # type: ignore[arg-type]
        notes, steps = await owner.loaded
        launcher.running.cancel()
        container.transport.close()  # type: ignore[union-attr]
        assert notes == ["no cgroup"]
        assert {"asked", "forked", "hello", "load", "ready"} <= steps

    asyncio.run(asyncio.wait_for(scenario(), 30))
