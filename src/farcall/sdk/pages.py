"""Files as part of this process's memory, and what the kernel knows of its pages.

Addresses are numbers here: Python's own `mmap` keeps a descriptor for each mapping before 3.13, and tells no address.
What it needs of ctypes is imported by the first large value.
"""

import os
import sys
from typing import Any

_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_MAP_POPULATE = 0x8000
_MADV_DONTFORK, _MADV_HUGEPAGE = 10, 14

# The highest byte of a page's entry in /proc/PID/pagemap (8 bytes each, little-endian).
_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
_STATES = _PRESENT | _SWAPPED | _OF_FILE


def map_file(descriptor: int, offset: int, length: int, *, shared: bool = False) -> int:
    """Maps `length` > 0 bytes of a file from `offset` (a multiple of the page size), readable and writable; returns the
    address.

    A private mapping shows the file until a page is written, which then is this process's own. A `shared` one writes to
    the file; its pages are all there at once, and a fork does not get them. Raises OSError.
    """
    import ctypes

    library = _libc()
    flags = _MAP_SHARED | _MAP_POPULATE if shared else _MAP_PRIVATE
    address = library.mmap(None, length, _PROT_READ | _PROT_WRITE, flags, descriptor, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if shared:
        library.madvise(address, length, _MADV_DONTFORK)
    return address


def unmap(address: int, length: int) -> None:
    """Ends a mapping of `map_file`."""
    _libc().munmap(address, length)


def address_of(view: memoryview) -> int:
    """Where the bytes of a contiguous view are."""
    import ctypes

    buffer = (ctypes.c_void_p * 16)()  # a Py_buffer, which is shorter and begins with the address
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), buffer, 0)
    address = buffer[0]
    ctypes.pythonapi.PyBuffer_Release(buffer)
    assert address is not None
    return address


def copy(view: memoryview, address: int) -> None:
    """Copies the bytes of a contiguous view. Other threads run meanwhile."""
    import ctypes

    ctypes.memmove(address, address_of(view), view.nbytes)


def advise_huge_pages(view: memoryview) -> None:
    """Asks that new memory under `view` come in huge pages. Only a wish: refusals do not matter."""
    if sys.platform != "linux":
        return
    import mmap

    first = address_of(view)
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    _libc().madvise(start, first + view.nbytes - start, _MADV_HUGEPAGE)


def is_unwritten(address: int, length: int) -> bool:
    """Whether these bytes of a private mapping of a file are for certain what the file holds: no page with one of them
    was ever written."""
    import mmap

    first, last = address // mmap.PAGESIZE, (address + length - 1) // mmap.PAGESIZE
    wanted = 8 * (last - first + 1)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entries = os.pread(pagemap.fileno(), wanted, 8 * first)
    except OSError:  # not Linux, or no /proc
        return False
    # A page of the file, or none yet. A page of our own is not the file's; swapped out, it is not present either.
    return len(entries) == wanted and all(state & _STATES in (0, _PRESENT | _OF_FILE) for state in set(entries[7::8]))


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
