"""The page of memory that a worker shares with one runner: which input runs, and which one shall stop.

A frame for "started" would cost every short call a system call; a store into shared memory costs nothing. All fields
are 64-bit, aligned and written by one side only, so that each is read whole.
"""

import mmap
import os
import struct
from typing import ClassVar

SIZE = 4096  # bytes

_U64 = struct.Struct("<Q")
_F64 = struct.Struct("<d")


class SharedPage:
    """One side's view of the page. The runner writes `running` and `started_at`; the worker writes the rest.

    An input that was handed out and has not started can be taken back. Both sides first store, then look: the runner
    stores `running` and then looks at `revoked`, the worker stores `revoked` and then looks at `running`. So of an
    input taken back either the worker sees that it runs, and leaves it, or the runner sees that it is gone, and skips
    it.
    """

    _RUNNING: ClassVar[int] = 0
    _STARTED_AT: ClassVar[int] = 8
    _REVOKED_FROM: ClassVar[int] = 80
    _REVOKED_TO: ClassVar[int] = 88
    _CANCELLED: ClassVar[int] = 1024  # to the page's end: one number, `seq * 4 + reason`, for each `seq % _SLOTS`
    _SLOTS: ClassVar[int] = 384

    CANCELLED: ClassVar[int] = 1
    TIMED_OUT: ClassVar[int] = 2

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)

    @staticmethod
    def create() -> int:
        """A descriptor of a new, zeroed page."""
        fd = os.memfd_create("farcall-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        return fd

    def start(self, seq: int, now: float) -> None:
        """Runner: input `seq` runs from now on (`now` is CLOCK_MONOTONIC, the same in all containers of a machine)."""
        _F64.pack_into(self._map, self._STARTED_AT, now)
        _U64.pack_into(self._map, self._RUNNING, seq)

    def finish(self) -> None:
        """Runner: no input runs."""
        _U64.pack_into(self._map, self._RUNNING, 0)

    @property
    def running(self) -> int:
        """The input that runs, 0 for none. While an input runs, all handed out before it have ended."""
        return _U64.unpack_from(self._map, self._RUNNING)[0]

    @property
    def started_at(self) -> float:
        """When the running input started, in seconds of CLOCK_MONOTONIC."""
        return _F64.unpack_from(self._map, self._STARTED_AT)[0]

    def cancel(self, seq: int, reason: int) -> None:
        """Worker: input `seq` shall not run on. If it is then seen to run, a signal to the runner follows."""
        _U64.pack_into(self._map, self._CANCELLED + 8 * (seq % self._SLOTS), seq * 4 + reason)

    def cancelled(self, seq: int) -> int:
        """Why input `seq` shall not run on, 0 where it may. The runner looks after `start`, and when a signal came."""
        number = _U64.unpack_from(self._map, self._CANCELLED + 8 * (seq % self._SLOTS))[0]
        return number & 3 if number >> 2 == seq else 0

    def revoke(self, first: int, last: int) -> int:
        """Worker: inputs `first` to `last` shall not start. Returns the input that runs: those after it are taken back
        for certain, it itself will either run to its end or be answered as revoked."""
        _U64.pack_into(self._map, self._REVOKED_TO, last)
        _U64.pack_into(self._map, self._REVOKED_FROM, first)
        return self.running

    def is_revoked(self, seq: int) -> bool:
        """Runner, after `start`: whether the input was taken back, so that it must not run."""
        first = _U64.unpack_from(self._map, self._REVOKED_FROM)[0]
        return first != 0 and first <= seq <= _U64.unpack_from(self._map, self._REVOKED_TO)[0]

    def close(self) -> None:
        """Unmaps the page."""
        self._map.close()
