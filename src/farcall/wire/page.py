"""The page of memory that a worker shares with one runner: which input runs, and which one shall stop.

A frame for "started" would cost every short call a system call; a store into shared memory costs nothing. All fields are
64-bit, aligned and written by one side only, so that each is read whole.
"""

import mmap
import os
import struct
from typing import ClassVar

SIZE = 4096  # bytes

_U64 = struct.Struct("<Q")
_F64 = struct.Struct("<d")


class SharedPage:
    """One side's view of the page. The runner writes `running` and `started_at`; the worker writes `cancel` and `reason`."""

    _RUNNING: ClassVar[int] = 0
    _STARTED_AT: ClassVar[int] = 8
    _CANCEL: ClassVar[int] = 64
    _REASON: ClassVar[int] = 72

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
        """Worker: input `seq` shall stop; a signal to the runner follows."""
        _U64.pack_into(self._map, self._REASON, reason)
        _U64.pack_into(self._map, self._CANCEL, seq)

    @property
    def cancelled(self) -> tuple[int, int]:
        """Which input shall stop, and why; (0, 0) for none."""
        return _U64.unpack_from(self._map, self._CANCEL)[0], _U64.unpack_from(self._map, self._REASON)[0]

    def close(self) -> None:
        """Unmaps the page."""
        self._map.close()
