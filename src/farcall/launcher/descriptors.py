"""Datagrams that carry file descriptors.

Not socket.send_fds and recv_fds: those ignore their `flags` (Python 3.11 to 3.13 at least), so that received
descriptors would leak into every process exec'd meanwhile.
"""

import array
import os
import socket
from collections.abc import Sequence


def send(channel: socket.socket, data: bytes, fds: Sequence[int] = (), *, wait: bool = True) -> None:
    """Send one datagram. Raises BlockingIOError where it would have to wait and may not, and OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], rights, socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT))


def receive(channel: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive one datagram of at most `size` bytes and `most` descriptors, which do not survive an exec.

    b"" is the end of the stream. Raises BlockingIOError on a non-blocking socket without one, and OSError; a datagram
    that does not fit counts as damaged and raises OSError.
    """
    fds = array.array("i")
    space = socket.CMSG_SPACE(most * fds.itemsize)
    data, ancillary, flags, _ = channel.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close(list(fds))
        raise OSError("a datagram is larger than the protocol allows")
    return data, list(fds)


def close(fds: Sequence[int]) -> None:
    """Close all of them."""
    for fd in fds:
        os.close(fd)
