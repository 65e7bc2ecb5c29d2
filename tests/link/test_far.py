"""The end of a link on the server's machine, when nothing is heard from the other end any more."""

import os
import socket
import subprocess
import sys

import pytest

from farcall.link import packets
from farcall.link.packets import Kind, Session
from tests.conftest import short_directory

HOLD = """
import asyncio, socket, sys
from farcall.link import far

far.HELD_SECONDS = 1.0
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
asyncio.run(far._Holder(bytes(16), listener).serve())
"""


@pytest.mark.parametrize("is_attached", [True, False], ids=["a connection whose end is not seen", "no connection"])
def test_connections_end_when_nothing_was_heard_for_long(is_attached: bool) -> None:
    with short_directory() as root:
        command = [sys.executable, "-c", HOLD, os.fspath(root / "hold")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder, socket.socket(socket.AF_UNIX) as line:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"ready\n"
                if is_attached:
                    line.connect(os.fspath(root / "hold"))
                    session = Session(bytes(16))
                    line.sendall(session.hello())
                    for _ in range(8):  # for longer than that it has something to say
                        line.settimeout(0.25)
                        try:
                            assert line.recv(1 << 16), "it ended though it was spoken to"
                        except TimeoutError:
                            pass
                        line.sendall(packets.encode(Kind.PING))
                assert holder.wait(30) == 0
            finally:
                holder.kill()
