"""Bytes too long for a frame, as memory files."""

import os
from collections.abc import Iterable

INLINE_LIMIT = 64 * 1024  # bytes


class HeldFiles:
    """Memory files that are held on to. However many descriptors there are of one, its memory counts once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._files: dict[int, tuple[int, int]] = {}  # by inode: holders, bytes

    def add(self, fd: int) -> int:
        """One more holder of a file; returns what `remove` is to be given. The descriptor stays the caller's."""
        status = os.fstat(fd)
        holders, size = self._files.get(status.st_ino, (0, 0))
        if not holders:
            size = status.st_blocks * 512  # what it takes: code in containers may send sparse files
            self.bytes += size
        self._files[status.st_ino] = holders + 1, size
        return status.st_ino

    def remove(self, file: int) -> None:
        """One holder less."""
        holders, size = self._files[file]
        if holders > 1:
            self._files[file] = holders - 1, size
        else:
            del self._files[file]
            self.bytes -= size


def total_size(fds: Iterable[int]) -> int:
    """Bytes of all these files."""
    return sum(os.fstat(fd).st_size for fd in fds)


def new_memory(name: str = "farcall", flags: int = 0) -> int:
    """A descriptor of an empty anonymous file. `name` and `flags` are those of memfd_create; other systems, which are
    clients of a server elsewhere, have a file on disk without a name instead."""
    if not hasattr(os, "memfd_create"):
        import tempfile

        fd, path = tempfile.mkstemp(prefix="farcall-")
        os.unlink(path)
        return fd
    return os.memfd_create(name, os.MFD_CLOEXEC | flags)


def to_memory(data: bytes | memoryview) -> int:
    """A descriptor of an anonymous file that holds `data`."""
    fd = new_memory()
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def from_memory(fd: int) -> bytes:
    """All that a memory file holds. The descriptor stays the caller's."""
    size = os.fstat(fd).st_size
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(fd, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]
