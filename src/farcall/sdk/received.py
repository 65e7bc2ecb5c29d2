"""Large arrays as they are received: mapped from the file they came in, and sent on in it.

An array whose pages nobody has written is still what the file holds. Where a function returns one that it was given, or
a program passes a result on to the next function, the file itself goes out again, and nothing is copied. The kernel
tells for each page of a private mapping whether it is the file's, whoever may have written to it and however.
"""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from farcall.sdk import pages

_SEND_ON_FROM = 1024 * 1024  # bytes of a mapping; what is smaller is copied faster than looked up
_MOST_FILES = 16  # mappings that can be sent on, each of which holds a descriptor
_LEAST_SHARE = 0.75  # of a file that is sent on for its arrays' sake: the receiver keeps all of it in memory


class _Received(NamedTuple):
    """A mapping that can be sent on."""

    address: int
    length: int
    descriptor: int
    offset: int  # in the file, of the mapping
    size: int  # of the file


_received: dict[int, _Received] = {}  # by address; each change is one step: threads need no lock


def map_received(descriptor: int, offset: int, length: int) -> memoryview:
    """`length` > 0 bytes of a file from `offset`, mapped: shared until written, then this process's own.

    The mapping lives as long as any view of it, and keeps the whole file's memory alive. Raises EOFError where the file
    is shorter.
    """
    import ctypes
    import mmap
    import weakref

    size = os.fstat(descriptor).st_size
    if size < offset + length:  # a page beyond the end would be SIGBUS, not an error
        raise EOFError(f"shared memory ends before byte {offset + length}")
    skipped = offset % mmap.ALLOCATIONGRANULARITY
    address = pages.map_file(descriptor, offset - skipped, length + skipped)
    region = (ctypes.c_ubyte * length).from_address(address + skipped)
    if length >= _SEND_ON_FROM and len(_received) < _MOST_FILES and sys.platform == "linux":
        try:
            own = os.dup(descriptor)
        except OSError:
            pass  # no more descriptors: it is copied when it is sent on
        else:
            _received[address] = _Received(address, length + skipped, own, offset - skipped, size)
    weakref.finalize(region, _release, address, length + skipped).atexit = False
    return memoryview(region).cast("B")


def _release(address: int, length: int) -> None:
    found = _received.pop(address, None)
    if found is not None:
        os.close(found.descriptor)
    pages.unmap(address, length)


def send_on(views: Sequence[memoryview]) -> tuple[int, list[int]] | None:
    """The file that these views, of contiguous bytes, came in: a descriptor, the caller's from now on, and where in it
    each of them is. None where they did not come so, where one was changed, or where they are too little of it."""
    if not _received:
        return None
    spans = [(pages.address_of(view), view.nbytes) for view in views]
    found = next((each for each in list(_received.values()) if _holds(each, spans)), None)
    if found is None or sum(length for _, length in spans) < _LEAST_SHARE * found.size:
        return None
    end = 0
    for address, length in sorted(spans):
        if address < end:
            return None  # two views of the same bytes, which arrive as two arrays
        end = address + length
    if not all(pages.is_unwritten(address, length) for address, length in spans):
        return None
    try:
        descriptor = os.dup(found.descriptor)
    except OSError:
        return None
    return descriptor, [found.offset + address - found.address for address, _ in spans]


def _holds(each: _Received, spans: Sequence[tuple[int, int]]) -> bool:
    end = each.address + each.length
    return all(each.address <= address and address + length <= end for address, length in spans)
