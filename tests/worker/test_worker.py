"""The worker and its launcher."""

import asyncio
import os
import socket
import threading
from pathlib import Path

import msgspec

from farcall.content.store import Store
from farcall.launcher import messages
from farcall.launcher.process import PROTOCOL_VERSION
from farcall.launcher.worker_link import SOCKET_NAME
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
