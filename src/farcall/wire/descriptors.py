"""File descriptors that ride on frames (SCM_RIGHTS)."""

import array
import os
import socket
from collections.abc import Iterable, Sequence

from farcall.errors import ProtocolError
from farcall.wire.frames import MAX_DESCRIPTORS

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


class DescriptorQueue:
    """Descriptors that have arrived and wait for the frame that claims them, in order of arrival.

    The kernel delivers a descriptor with the first byte of the send it rode on, so it is never later than its frame.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, ancillary: Ancillary) -> None:
        """Takes over the descriptors in what `recvmsg` returned."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        if len(self._fds) > MAX_DESCRIPTORS:  # a peer that sends more than it claims
            self.close()

    def take(self, count: int) -> tuple[int, ...]:
        """The `count` descriptors of a frame. Raises ProtocolError, and closes what is there, where not exactly these
        came: a process at its limit of open files loses some of them."""
        # The kernel ends a read behind the first byte that descriptors came with, so none of a later frame are here.
        if count != len(self._fds):
            found = len(self._fds)
            self.close()
            raise ProtocolError(
                f"a frame claims {count} descriptors and {found} came with it; "
                "a process that has too many open files (ulimit -n) loses them"
            )
        fds = tuple(self._fds)
        self._fds.clear()
        return fds

    def close(self) -> None:
        """Closes what nobody claimed."""
        close_all(self._fds)
        self._fds.clear()
