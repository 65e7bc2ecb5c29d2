"""Which files are open, and how: what a server of this file system must know of the one before it.

The kernel wants all openings of a file that exist at the same time to be of one kind: past the server, to the same
backing, or through its own cache. So the account outlives a server that is killed: it is written into a memory file
that the launcher holds, before each answer. What a server died between counts once too often, which costs a little
speed and nothing else.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_LINE = struct.Struct("=Qiii")  # node, backing, openings, padding
_COMPACT_LINES = 1 << 16  # lines, from which on the account is written anew when most of them say nothing any more


@dataclass
class Opening:
    """How a file is open: `backing` is the kernel's number of what reads go to, 0 where they come to the server."""

    backing: int
    count: int


class Openings:
    """The account. Belongs to one thread."""

    def __init__(self, fd: int) -> None:
        """In the memory file `fd`, which may have that of a former server."""
        self._fd = fd
        self._open: dict[int, Opening] = {}
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        for node, backing, change, _ in _LINE.iter_unpack(data[: len(data) // _LINE.size * _LINE.size]):
            self._count(node, backing, change)
        self._lines = len(data) // _LINE.size

    def get(self, node: int) -> Opening | None:
        """How the file is open; None where it is not."""
        return self._open.get(node)

    def opened(self, node: int, backing: int) -> None:
        """There is one opening more."""
        self._write(node, backing, 1)
        self._count(node, backing, 1)

    def released(self, node: int) -> int:
        """There is one less; returns the backing that nothing uses any more, 0 where there is none such."""
        known = self._open.get(node)
        if known is None:
            return 0
        self._write(node, known.backing, -1)
        self._count(node, known.backing, -1)
        return 0 if node in self._open else known.backing

    def _count(self, node: int, backing: int, change: int) -> None:
        known = self._open.setdefault(node, Opening(backing, 0))
        known.count += change
        if known.count <= 0:
            del self._open[node]

    def _write(self, node: int, backing: int, change: int) -> None:
        if self._lines >= _COMPACT_LINES and self._lines > 4 * len(self._open):
            lines = [_LINE.pack(node, one.backing, one.count, 0) for node, one in self._open.items()]
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"".join(lines), 0)
            self._lines = len(lines)
        os.pwrite(self._fd, _LINE.pack(node, backing, change, 0), self._lines * _LINE.size)
        self._lines += 1
