"""File descriptors that ride on frames (SCM_RIGHTS)."""

import array
import os
import socket
from collections.abc import Iterable, Sequence

from farcall.wire.frames import MAX_DESCRIPTORS

# Plain numbers: arithmetic with the socket module's enums takes a microsecond each.
CLOSE_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # Linux
TRUNCATED = int(socket.MSG_CTRUNC)

ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)

Ancillary = list[tuple[int, int, bytes]]


def pack(fds: Sequence[int]) -> Ancillary:
    """The ancillary data that sends these descriptors along."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors nobody wants; one that is closed already is no error."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def unpack(ancillary: Ancillary, flags: int) -> list[int] | None:
    """The descriptors that one `recvmsg` returned, None where none were sent along. Some, or all, are lost where this
    process has too many open files."""
    group = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            group.frombytes(data[: len(data) - len(data) % group.itemsize])
    return list(group) if group or flags & TRUNCATED else None
