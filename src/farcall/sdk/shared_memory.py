"""Memory that processes hand to each other by file descriptor: how large values travel on one machine.

A value is written once, front to back, into a memory file (memfd). Nobody changes it while anybody can read it, so it
can be mapped, read by several processes, and handed to another container when the first one died. Nothing here uses
the file's own position, because all holders of a descriptor share it.

What it costs is pages, not copying (100 MB: 10 ms to copy, 20 ms more to allocate the file's pages, 10 ms to free them,
40 ms more to fault in 4 KiB pages at the reader). The reader therefore asks for huge pages before it reads into new
memory, and the writer of large values keeps its files for a moment, to write the next value over one that nobody can
read any more. Only the kernel knows which those are: others get a second, read-only opening of the file, and the writer
is granted a write lease on its own exactly when that opening has no descriptor (in a process, or on its way in a
socket) and no mapping left, whoever had them and however they came to an end. Smaller values go into sealed files.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PAGE = 4096  # alignment of mapped parts in a file, bytes; a mapping begins at a multiple of the real page size below it

_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3; hosts with vm.memfd_noexec=2 refuse files made without it
_MADV_HUGEPAGE = 14
_PROT_READ, _PROT_WRITE, _MAP_PRIVATE = 1, 2, 2

# Below this, importing ctypes to ask for huge pages costs more than the faults it saves.
_HUGE_PAGE_READ = 4 * 1024 * 1024
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


class _Kept(NamedTuple):
    """A file that was sent and may be written again."""

    descriptor: int
    size: int
    since: float


kept: list[_Kept] = []  # each change is one step: threads and signal handlers need no lock
_last_large = -KEEP_SECONDS  # when the last large file was made: those of a program that sends one are not kept
_keeps = sys.platform == "linux"


def release_kept(older_than: float = 0.0) -> None:
    """Gives back the memory of files that have been kept for longer than that, in seconds."""
    limit = monotonic() - older_than
    for each in kept[:]:
        if each.since <= limit and _claim(each):
            os.close(each.descriptor)


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


def _after_fork_in_child() -> None:
    """The parent goes on writing to its files: they are not the child's."""
    while kept:
        os.close(kept.pop().descriptor)


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
        if expected >= _KEEP_FROM and _keeps:
            now = monotonic()
            self._reusable, _last_large = now - _last_large < KEEP_SECONDS, now
            if kept and (former := _take(expected)):
                self._reusable = True
                self._descriptor, self._former_size, _ = former
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
                if _is_unread(descriptor):  # a kernel that does not see the reader
                    os.close(descriptor)
                else:
                    kept.append(_Kept(descriptor, self.size, monotonic()))
                return reader
        self._descriptor = -1
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
            os.close(descriptor)


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
                _advise_huge_pages(view)
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


def map_private(descriptor: int, offset: int, length: int) -> memoryview:
    """`length` > 0 bytes from `offset` (a multiple of `PAGE`), mapped: shared until written, then this process's own.

    The mapping lives as long as any view of it, holds no descriptor, and keeps the whole file's memory alive.
    (Python's own `mmap` keeps a descriptor for each mapping before 3.13: a thousand arrays would use them all up.)
    """
    import ctypes
    import mmap
    import weakref

    if os.fstat(descriptor).st_size < offset + length:  # a page beyond the end would be SIGBUS, not an error
        raise EOFError(f"shared memory ends before byte {offset + length}")
    skipped = offset % mmap.ALLOCATIONGRANULARITY
    library: Any = _libc()
    address = library.mmap(None, length + skipped, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE, descriptor, offset - skipped)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    region = (ctypes.c_ubyte * length).from_address(address + skipped)
    weakref.finalize(region, library.munmap, address, length + skipped).atexit = False
    return memoryview(region).cast("B")


def _create() -> int:
    memfd_create: Callable[[str, int], int] | None = getattr(os, "memfd_create", None)
    if memfd_create is None:  # not Linux: `farcall run --local`, or a server elsewhere
        import tempfile

        descriptor, path = tempfile.mkstemp(prefix="farcall-value-")
        os.unlink(path)
        return descriptor
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return memfd_create("farcall-value", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return memfd_create("farcall-value", flags)


_library: Any = None


def _libc() -> Any:
    global _library
    if _library is None:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        ]
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        _library = library
    return _library


def _advise_huge_pages(view: memoryview) -> None:
    """Asks that new memory under `view` come in huge pages. Only a wish: refusals do not matter."""
    import ctypes
    import mmap

    if sys.platform != "linux":
        return
    first = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    _libc().madvise(start, first + view.nbytes - start, _MADV_HUGEPAGE)
