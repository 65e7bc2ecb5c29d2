"""What arrives on a socket: bytes and descriptors, put together again as messages."""

from typing import Any

from farcall.errors import ProtocolError
from farcall.wire import descriptors
from farcall.wire.frames import FrameDecoder


class Incoming:
    """The receiving half of a connection, without the socket.

    All descriptors of a frame ride on the send of its first byte, and the kernel ends a read behind the piece of a
    stream that carried some. So those that come with a read belong to the one frame that starts in this read and
    claims some; what no such frame claims is closed.
    """

    def __init__(self, messages: Any) -> None:
        self._decoder = FrameDecoder(messages)
        self._group: list[int] | None = None  # that came with the last read
        self._unfinished: list[int] | None = None  # of the frame that is not whole yet
        self._started_before = False  # the next frame began in an earlier read
        self._held: Any = None  # a message whose descriptors were lost, behind the error that says so

    def add(self, data: memoryview, ancillary: descriptors.Ancillary, flags: int = 0) -> None:
        """What one `recvmsg` returned. All messages of an earlier one must have been taken."""
        group = descriptors.unpack(ancillary, flags) if ancillary or flags & descriptors.TRUNCATED else None
        started_before = self._decoder.pending > 0
        self._decoder.add(data)
        self._group, self._started_before = group, started_before

    def take(self) -> tuple[Any, tuple[int, ...]] | None:
        """The next message, or ProtocolError, with its descriptors, which are now the caller's; None where there is no
        more. A message whose descriptors were lost comes without them, after a ProtocolError: whoever waits for it must
        not wait in vain."""
        if self._held is not None:
            message, self._held = self._held, None
            return message, ()
        taken = self._decoder.take()
        if taken is None:
            self._end_read()
            return None
        message, carried = taken
        own: list[int] | None = None
        if self._started_before:
            own, self._unfinished, self._started_before = self._unfinished, None, False
        elif carried:
            own, self._group = self._group, None
        # No call up to here: nearly all messages have no descriptors, and none of those can be lost to a signal's
        # handler.
        if not carried and not own:
            return message, ()
        fds = tuple(own or ())
        if len(fds) == carried and not isinstance(message, ProtocolError):
            return message, fds
        descriptors.close_all(fds)
        if len(fds) != carried and carried:
            self._held = message
            return _mismatch(carried, len(fds)), ()
        return message, ()

    def _end_read(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            if self._decoder.pending and not self._started_before:
                self._unfinished = group
            else:
                descriptors.close_all(group)

    def close(self) -> None:
        """Closes the descriptors that no message will claim."""
        descriptors.close_all([*(self._group or ()), *(self._unfinished or ())])
        self._group = self._unfinished = None


def _mismatch(claimed: int, came: int) -> ProtocolError:
    return ProtocolError(
        f"a frame claims {claimed} descriptors and {came} came with it; "
        "a process that has too many open files (ulimit -n) loses them"
    )
