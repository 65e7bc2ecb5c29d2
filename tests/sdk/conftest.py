"""Fixtures of the SDK's tests."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farcall.sdk import exceptions_codec, shared_memory, values
from tests.conftest import open_descriptors


@pytest.fixture(scope="module")
def peer() -> Iterator[Callable[[str, Any], Any]]:
    """`peer(operation, argument)`: what `values_peer.perform` returns in another process; raises what it raises."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = Path(__file__).with_name("values_peer.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(program), str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    theirs.close()

    def ask(operation: str, argument: Any) -> Any:
        payload = values.dumps((operation, argument), by_value_modules=frozenset({"by_value_sample"}))
        socket.send_fds(ours, [b"r" + payload.data], payload.fds)
        payload.close()
        data, fds, _, _ = socket.recv_fds(ours, values.INLINE_LIMIT + 1, 4)
        assert data, "the other process ended"
        if data[:1] == b"e":
            raise exceptions_codec.load_exception(data[1:], fds)
        return values.loads(data[1:], fds)

    yield ask
    ours.close()
    assert process.wait(20) == 0


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves no descriptor behind."""
    shared_memory.release_kept()
    before = open_descriptors()
    yield
    import gc

    gc.collect()
    shared_memory.release_kept()
    assert open_descriptors() <= before
