"""The poll loop and the datagrams of descriptors, which everything else in the launcher stands on."""

import os
import socket

import pytest

from farcall.launcher import descriptors
from farcall.launcher.loop import Loop
from tests.conftest import open_descriptors


def test_calls_what_is_ready_and_nothing_else() -> None:
    loop, heard = Loop(), list[bytes]()
    near, far = socket.socketpair()
    loop.add(near.fileno(), lambda: heard.append(near.recv(10)))
    assert not loop.turn(0)
    far.send(b"one")
    assert loop.turn(1)
    assert heard == [b"one"]
    loop.remove(near.fileno())
    loop.remove(near.fileno())  # what is absent is removed
    far.send(b"two")
    assert not loop.turn(0)
    near.close()
    far.close()


def test_a_handler_that_raises_is_not_met_for_ever(capfd: pytest.CaptureFixture[str]) -> None:
    loop, heard = Loop(), list[bytes]()
    broken, broken_far = socket.socketpair()
    near, far = socket.socketpair()
    loop.add(broken.fileno(), lambda: [][0])
    loop.add(near.fileno(), lambda: heard.append(near.recv(10)))
    broken_far.send(b"x")
    far.send(b"one")
    assert loop.turn(1)
    assert heard == [b"one"]
    assert not loop.turn(0)
    assert "IndexError" in capfd.readouterr().err
    for channel in (broken, broken_far, near, far):
        channel.close()


def test_a_handler_may_remove_another() -> None:
    loop, heard = Loop(), list[int]()
    pairs = [socket.socketpair() for _ in range(2)]

    def hear(mine: int) -> None:
        heard.append(mine)
        for near, _ in pairs:
            loop.remove(near.fileno())

    for number, (near, far) in enumerate(pairs):
        loop.add(near.fileno(), lambda number=number: hear(number))
        far.send(b"x")
    loop.turn(1)
    assert len(heard) == 1
    for near, far in pairs:
        near.close()
        far.close()


def test_received_descriptors_do_not_survive_an_exec() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptors.send(near, b"with", [0, 1])
    data, fds = descriptors.receive(far, 100, 4)
    assert data == b"with"
    assert len(fds) == 2
    assert not any(os.get_inheritable(fd) for fd in fds)
    descriptors.close(fds)
    near.close()
    assert descriptors.receive(far, 100, 4) == (b"", [])
    far.close()


def test_a_datagram_that_does_not_fit_is_an_error_and_leaks_nothing() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = open_descriptors()
    descriptors.send(near, b"x" * 200, [0, 1])
    with pytest.raises(OSError, match="larger than the protocol allows"):
        descriptors.receive(far, 100, 4)
    assert open_descriptors() <= before
    descriptors.send(near, b"next")
    assert descriptors.receive(far, 100, 4) == (b"next", [])
    near.close()
    far.close()
