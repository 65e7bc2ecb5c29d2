"""How much of a store nobody keeps any more, so that somebody knows when a collection is worth it."""

import os
import threading
from contextlib import suppress
from pathlib import Path

_DIGITS = 20  # always so many: on a full disk the file is written over, and takes no more room


class DeadBytes:
    """About how many bytes have lost their last user since the last collection.

    It is a hint: what a lease still keeps counts, what nobody has reported does not, and of two processes that count at
    once one may be lost. It stands in a file, so it outlives servers that end before enough has come together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counting = threading.Lock()

    def get(self) -> int:
        """The bytes so far."""
        try:
            return int(self._path.read_bytes())
        except (OSError, ValueError):
            return 0

    def add(self, size: int) -> None:
        """So many more."""
        with self._counting:
            self._put(self.get() + size)

    def subtract(self, size: int) -> None:
        """So many of them were looked at by a collection."""
        with self._counting:
            self._put(max(0, self.get() - size))

    def _put(self, size: int) -> None:
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, f"{size:0{_DIGITS}}".encode(), 0)
            finally:
                os.close(fd)
