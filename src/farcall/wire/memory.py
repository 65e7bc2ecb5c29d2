"""Bytes too long for a frame, as memory files."""

import os

INLINE_LIMIT = 64 * 1024  # bytes


def to_memory(data: bytes | memoryview) -> int:
    """A descriptor of an anonymous file that holds `data`."""
    fd = os.memfd_create("farcall", os.MFD_CLOEXEC)
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
