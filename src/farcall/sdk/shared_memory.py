"""Memory that processes hand to each other by file descriptor: how large values travel on one machine.

A value is written once, front to back, into a memory file (memfd). Nobody changes it while anybody can read it, so it
can be mapped, read by several processes, and handed to another container when the first one died. Nothing here uses
the file's own position, because all holders of a descriptor share it.

What it costs is pages, not copying (100 MB: 10 ms to copy, 20 ms more to allocate the file's pages, 10 ms to free them,
40 ms more to fault in 4 KiB pages at the reader). The reader therefore asks for huge pages before it reads into new
memory, and the writer of large values keeps its files for a moment, to write the next value over one that nobody can
read any more: through a mapping, which spares the kernel's work for each page, half of the time. Only the kernel knows
which files those are: others get a second, read-only opening, and the writer is granted a write lease on its own
exactly when that opening has no descriptor (in a process, or on its way in a socket) and no mapping left, whoever had
them and however they came to an end. Smaller values go into sealed files.
"""

import errno
import io
import os
import sys
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from farcall.errors import ResourceExhaustedError
from farcall.sdk import pages
from farcall.wire.memory import new_memory

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PAGE = 4096  # alignment of mapped parts in a file, bytes; a mapping begins at a multiple of the real page size below it

_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3; hosts with vm.memfd_noexec=2 refuse files made without it

# Below these, importing ctypes costs more than huge pages or a mapping save.
_HUGE_PAGE_READ = 4 * 1024 * 1024
_MAPPED_FILE = 4 * 1024 * 1024
_MAPPED_WRITE = 64 * 1024  # bytes written at once
_READ_BUFFER = 256 * 1024

KEEP_SECONDS = 2.0  # how long a file is kept that is not used again
_KEEP_FROM = 256 * 1024  # bytes; what smaller files cost is the system calls, not the pages
_KEEP_BYTES = 256 * 1024 * 1024  # of all files kept by this process
_KEEP_FILES = 16

OUT_OF_RESOURCES = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT})


def exhausted(error: OSError | MemoryError, action: str) -> ResourceExhaustedError:
    """The error for memory, disk or descriptors that ran out during `action` ('writing a value of 3.1 GiB')."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceExhaustedError(f"{action}: too many open files; raise `ulimit -n` or hold fewer values at once")
    reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "out of memory"
    return ResourceExhaustedError(
        f"{action}: {reason}; send it in smaller parts, raise the memory limit, or put it into a Volume"
    )


def describe_size(size: int) -> str:
    """`size` bytes for people: '712 bytes', '3.1 GiB'."""
    if size < 1024:
        return f"{size} bytes"
    scaled = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        scaled /= 1024
        if scaled < 1024:
            return f"{scaled:.1f} {unit}"
    return f"{scaled / 1024:.1f} TiB"


class _Mapped(NamedTuple):
    """A file's first bytes, mapped to be written."""

    address: int
    length: int


class _Kept(NamedTuple):
    """A file that was sent and may be written again."""

    descriptor: int
    size: int
    since: float
    mapped: _Mapped | None = None

    def close(self) -> None:
        os.close(self.descriptor)
        _unmap(self.mapped)


kept: list[_Kept] = []  # each change is one step: threads and signal handlers need no lock
_last_large = -KEEP_SECONDS  # when the last large file was made: those of a program that sends one are not kept
_keeps = sys.platform == "linux"


def release_kept(older_than: float = 0.0) -> None:
    """Gives back the memory of files that have been kept for longer than that, in seconds."""
    limit = monotonic() - older_than
    for each in kept[:]:
        if each.since <= limit and _claim(each):
            each.close()


def keep_nothing() -> None:
    """From now on this process keeps no files: its memory is limited, and all of it is the user's."""
    global _keeps
    _keeps = False
    release_kept()


def _take(expected: int) -> _Kept | None:
    """A kept file that nobody can read any more, of about the expected size in bytes."""
    for each in sorted(kept, key=lambda each: abs(each.size - expected)):
        if each.size > 2 * expected:
            continue  # most of its pages would have to be freed
        if not _claim(each):
            continue
        unread = False
        try:
            unread = _is_unread(each.descriptor)
        finally:
            if not unread:
                kept.append(each)
        if unread:
            return each
    return None


def _has_room(size: int) -> bool:
    release_kept(KEEP_SECONDS)
    return len(kept) < _KEEP_FILES and sum(each.size for each in kept) + size <= _KEEP_BYTES


def _claim(each: _Kept) -> bool:
    try:
        kept.remove(each)
    except ValueError:  # another thread was faster
        return False
    return True


def _is_unread(descriptor: int) -> bool:
    """Whether this is the only opening of the file, as far as the kernel can say."""
    import fcntl

    granted = True
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        granted = False
    finally:  # also where a signal handler raises: who opens a file under a lease is made to wait
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            pass  # there is none
    return granted


def _map(former: _Kept) -> _Mapped | None:
    """The mapping through which a file is written again: its former one, or a new one where that is not most of it."""
    mapped, size = former.mapped, former.size
    if size < _MAPPED_FILE or (mapped is not None and 2 * mapped.length >= size):
        return mapped
    _unmap(mapped)
    try:
        return _Mapped(pages.map_file(former.descriptor, 0, size, shared=True), size)
    except OSError:
        return None  # no room for its page tables: it is written by calls


def _unmap(mapped: _Mapped | None) -> None:
    if mapped is not None:
        pages.unmap(*mapped)


def _after_fork_in_child() -> None:
    """The parent goes on writing to its files: they are not the child's."""
    while kept:
        os.close(kept.pop().descriptor)  # it has no mapping here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class SharedMemoryWriter:
    """One memory file being written. End it with `finish` (which gives a descriptor away) or `discard`.

    `expected` is the size in bytes as far as it is known: where it is large, a file that was kept is written again.
    """

    def __init__(self, expected: int = 0) -> None:
        global _last_large
        self.size = 0  # bytes written so far
        self._former_size = 0  # bytes that the file had when it was taken
        self._reusable = False
        self._descriptor = -1
        self._mapped: _Mapped | None = None
        if expected >= _KEEP_FROM and _keeps:
            now = monotonic()
            self._reusable, _last_large = now - _last_large < KEEP_SECONDS, now
            if kept and (former := _take(expected)):
                self._reusable = True
                self._descriptor, self._former_size = former.descriptor, former.size
                self._mapped = _map(former)
                return
        try:
            self._descriptor = _create()
        except OSError as error:
            raise exhausted(error, "making shared memory for a value") from error
        if self._reusable:
            self._reopen()

    def write(self, data: "ReadableBuffer") -> None:
        """Appends. Raises ResourceExhaustedError where memory runs out; discard the file then."""
        view = memoryview(data)
        if view.ndim != 1 or view.itemsize != 1:
            view = view.cast("B")
        start, length = 0, view.nbytes
        if self._mapped is not None and length >= _MAPPED_WRITE:
            # Not beyond the file's former end: there is no memory, and writing there a signal, not an error.
            start = max(0, min(length, min(self._mapped.length, self._former_size) - self.size))
            if start:
                pages.copy(view[:start], self._mapped.address + self.size)
        try:
            while start < length:  # one call writes 2 GiB at most
                start += os.pwrite(self._descriptor, view[start:], self.size + start)
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                raise
            written = describe_size(self.size + length)
            raise exhausted(error, f"writing {written} of a value to shared memory") from error
        self.size += length

    def align(self) -> int:
        """Moves on to the next page boundary and returns its offset. The gap reads as zeros."""
        gap = -self.size % PAGE
        if self.size < self._former_size:
            self.write(bytes(gap))
        else:
            self.size += gap
        return self.size

    def finish(self) -> int:
        """Ends the writing and returns a descriptor for the readers, which the caller now owns."""
        descriptor = self._descriptor
        if self.size < self._former_size:
            os.ftruncate(descriptor, self.size)  # readers must not find the rest of another value
        if self._reusable and _has_room(self.size):
            try:
                reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # no more descriptors: it is given away like a small one
            else:
                self._descriptor = -1
                each = _Kept(descriptor, self.size, monotonic(), self._mapped)
                if _is_unread(descriptor):  # a kernel that does not see the reader
                    each.close()
                else:
                    kept.append(each)
                return reader
        self._descriptor = -1
        _unmap(self._mapped)  # a file that can be written is not sealed
        if hasattr(os, "memfd_create"):
            import fcntl

            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor

    def _reopen(self) -> None:
        """Opens the file by its name in /proc: the kernel does not count the opening that comes with a memfd."""
        import fcntl
        from signal import SIGURG

        try:
            descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._reusable = False
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        try:
            os.fchmod(descriptor, 0o400)  # readers that run as someone else cannot open it a second time
            # Should anybody open it under our lease, the kernel sends a signal: one that does not end the process.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, SIGURG)
        except OSError:
            self._reusable = False

    def discard(self) -> None:
        """Frees what was written. Safe to call twice, and after `finish` (where it does nothing)."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _Kept(descriptor, self.size, 0.0, self._mapped).close()


class _PositionalFile(io.RawIOBase):
    """Reads `length` bytes of a file from its start, by its own position."""

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self._length = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with memoryview(buffer) as view:
            wanted = min(view.nbytes, self._length - self._position)
            if wanted >= _HUGE_PAGE_READ:
                pages.advise_huge_pages(view)
            with view[:wanted] as target:
                count = os.preadv(self._descriptor, [target], self._position)
        self._position += count
        return count


def open_stream(descriptor: int, length: int) -> io.BufferedReader:
    """The first `length` bytes of a memory file as a file object for an Unpickler.

    Large `readinto`s go straight to the caller's buffer. The descriptor stays the caller's, and stays open meanwhile.
    """
    return io.BufferedReader(_PositionalFile(descriptor, length), _READ_BUFFER)


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`; EOFError where the file is shorter."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise EOFError(f"shared memory ends {length - len(data)} bytes early")
        data += more
    return data


def _create() -> int:
    sealing = getattr(os, "MFD_ALLOW_SEALING", 0)
    try:
        return new_memory("farcall-value", sealing | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return new_memory("farcall-value", sealing)
