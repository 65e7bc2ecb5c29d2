"""Memory that processes hand to each other by file descriptor: how large values travel on one machine.

A value is written once, front to back, into a memory file (memfd) that is then sealed: nobody can change or shrink it
any more, so it can be mapped without fear, read by several processes, and handed to another container when the first
one died. Nothing here uses the file's own position, because all holders of a descriptor share it.

What it costs is page faults, not copying (100 MB: 15 ms to copy, 20 ms more to allocate the file's pages, 40 ms more to
fault in 4 KiB pages at the reader). The reader therefore asks for huge pages before it reads into new memory.
"""

import errno
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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


class SharedMemoryWriter:
    """One memory file being written. End it with `seal` (which gives the descriptor away) or `discard`."""

    def __init__(self) -> None:
        try:
            self._descriptor = _create()
        except OSError as error:
            raise exhausted(error, "making shared memory for a value") from error
        self.size = 0  # bytes written so far

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
        self.size = -(-self.size // PAGE) * PAGE
        return self.size

    def seal(self) -> int:
        """Makes the file unchangeable and returns its descriptor, which the caller now owns."""
        descriptor, self._descriptor = self._descriptor, -1
        if hasattr(os, "memfd_create"):
            import fcntl

            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor

    def discard(self) -> None:
        """Frees what was written. Safe to call twice, and after `seal` (where it does nothing)."""
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
    import sys

    if sys.platform != "linux":
        return
    first = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    _libc().madvise(start, first + view.nbytes - start, _MADV_HUGEPAGE)
