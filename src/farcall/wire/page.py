"""The page of memory that a worker shares with one runner: which input runs, and which one shall stop.

A frame for "started" would cost every short call a system call; a store into shared memory costs nothing. All fields
are 64-bit, aligned and written by one side only, so that each is read whole.
"""

import mmap
import os
import struct
from typing import ClassVar

_U64 = struct.Struct("<Q")
_F64 = struct.Struct("<d")


class SharedPage:
    """One side's view of the page. The runner writes `started` and `started_at`; the worker the rest.

    Inputs start in the order of their numbers. One that was handed out and has not started can be cancelled or taken
    back. Both sides first store, then look: the runner stores `started` and then looks at the input's reason to stop,
    the worker stores the reason and then looks at `started`. So either the worker sees that the input has started, or
    the runner sees that it shall not, and skips it.

    The reasons of at most `slots` inputs are kept: no more may wait to be started at once. Where inputs run beside each
    other, one may run while any number of later ones come and go: then the page has no reason for an input that has
    started, and it is stopped by a frame.
    """

    _STARTED: ClassVar[int] = 0
    _STARTED_AT: ClassVar[int] = 8
    _REASONS: ClassVar[int] = 1024  # to the end: one number, `seq * 4 + reason`, for each `seq % slots`

    SLOTS: ClassVar[int] = 384  # at least
    CANCELLED: ClassVar[int] = 1
    TIMED_OUT: ClassVar[int] = 2
    REVOKED: ClassVar[int] = 3

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size)
        self.slots = (size - self._REASONS) // 8

    @classmethod
    def create(cls, slots: int = SLOTS) -> int:
        """A descriptor of a new, zeroed page for that many inputs. (It is a page in name only where they are many.)"""
        fd = os.memfd_create("farcall-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls._REASONS + 8 * max(slots, cls.SLOTS))
        return fd

    def start(self, seq: int, now: float) -> None:
        """Runner: input `seq` runs from now on (`now` is CLOCK_MONOTONIC, the same in all containers of a machine)."""
        _F64.pack_into(self._map, self._STARTED_AT, now)
        _U64.pack_into(self._map, self._STARTED, seq)

    @property
    def started(self) -> int:
        """The input that started last, 0 for none. All handed out before it have started, or were skipped."""
        return _U64.unpack_from(self._map, self._STARTED)[0]

    @property
    def started_at(self) -> float:
        """When the input that started last did so, in seconds of CLOCK_MONOTONIC."""
        return _F64.unpack_from(self._map, self._STARTED_AT)[0]

    def cancel(self, seq: int, reason: int) -> None:
        """Worker: input `seq` shall not run on. If it is then seen to run, a signal to the runner follows."""
        _U64.pack_into(self._map, self._REASONS + 8 * (seq % self.slots), seq * 4 + reason)

    def cancelled(self, seq: int) -> int:
        """Why input `seq` shall not run on, 0 where it may. The runner looks after `start`, and when a signal came."""
        number = _U64.unpack_from(self._map, self._REASONS + 8 * (seq % self.slots))[0]
        return number & 3 if number >> 2 == seq else 0

    def revoke(self, first: int, last: int) -> int:
        """Worker: inputs `first` to `last` shall not start. Returns the input that started last: those after it are
        taken back for certain, it itself will either run to its end or be answered as revoked."""
        for seq in range(first, last + 1):
            self.cancel(seq, self.REVOKED)
        return self.started

    def close(self) -> None:
        """Unmaps the page."""
        self._map.close()
