"""Reading files: their SHA-256, and whether they kept still meanwhile. Holes are neither read nor copied."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from farcall.content.disk import disk_error, printable, write_all
from farcall.errors import ContentError

CHUNK_BYTES = 1024 * 1024
ATTEMPTS = 4  # at a file that changes while it is read
# O_NONBLOCK: what was a file when its directory was listed may have become a FIFO, and would block.
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_ZEROS = bytes(CHUNK_BYTES)


def open_file(path: str | bytes) -> tuple[int, os.stat_result]:
    """A descriptor to read a regular file by, and its status; a symlink is not followed. ContentError and as
    `disk_error`."""
    try:
        fd = os.open(path, OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _no_file(path) from None
        raise disk_error(error, "reading", path) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise _no_file(path)
    return fd, status


def has_changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was written to, or became another one, between two looks at it."""
    return (
        before.st_mtime_ns != after.st_mtime_ns
        or before.st_ctime_ns != after.st_ctime_ns
        or before.st_size != after.st_size
        or before.st_ino != after.st_ino
    )


def changing(path: str | bytes) -> ContentError:
    """The error for a file that changed at each of `ATTEMPTS` readings."""
    return ContentError(
        f"{printable(path)} changed while it was read, {ATTEMPTS} times in a row. Leave it out, or try again when "
        "nothing writes to it"
    )


def hash_file(fd: int, size: int) -> bytes:
    """SHA-256 of the first `size` bytes of an open file, holes included, which cost no reading. OSError."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, size)))
    for start, end, is_data in _extents(fd, size):
        if not is_data:
            hash_zeros(hasher, end - start)
        while is_data and start < end:
            count = os.preadv(fd, [buffer[: end - start]], start)
            if count == 0:
                break  # it became shorter, which the caller sees
            hasher.update(buffer[:count])
            start += count
    return hasher.digest()


def copy_file(source: int, target: int, size: int) -> bytes:
    """Copy the first `size` bytes to a new, empty file, holes as holes; returns their SHA-256. OSError."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, size)))
    os.ftruncate(target, size)
    for start, end, is_data in _extents(source, size):
        if not is_data:
            hash_zeros(hasher, end - start)
            continue
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            count = os.preadv(source, [buffer[: end - start]], start)
            if count == 0:
                break
            hasher.update(buffer[:count])
            write_all(target, buffer[:count])
            start += count
    return hasher.digest()


class Hasher(Protocol):
    """What takes bytes one after the other."""

    def update(self, data: bytes, /) -> None: ...


def hash_zeros(hasher: Hasher, count: int) -> None:
    """Go on with `count` bytes of zeros."""
    while count > 0:
        hasher.update(_ZEROS if count >= CHUNK_BYTES else _ZEROS[:count])
        count -= CHUNK_BYTES


def _extents(fd: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether there is data) from 0 to `size`."""
    place = 0
    if os.fstat(fd).st_blocks * 512 >= size:  # no holes
        if size:
            yield 0, size, True
        return
    while place < size:
        try:
            data = min(os.lseek(fd, place, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size  # nothing but a hole up to the end
        if data > place:
            yield place, data, False
        if data < size:
            try:
                place = min(os.lseek(fd, data, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # it became shorter, which the caller sees
            yield data, place, True
        else:
            place = size


def _no_file(path: str | bytes) -> ContentError:
    return ContentError(f"{printable(path)} is no regular file (any more)")
