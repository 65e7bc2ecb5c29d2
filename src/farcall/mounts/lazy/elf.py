"""Programs and shared libraries, as far as it shows what a start reads of them, and which others it opens next.

The format is that of the System V ABI ("ELF"), of 64 bits, little endian. Images have files of any content: what is
not what it should be is no such file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEAD_BYTES = 4096  # from the beginning of a file, in which the segments are listed
MOST_DYNAMIC_BYTES = 64 << 10
MOST_NAME_BYTES = 256
_MAGIC = b"\x7fELF\x02\x01"  # of 64 bits, little endian
_HEADER = struct.Struct("<32xQ14xHH")  # where the list of segments is, length of an entry, and how many
_SEGMENT = struct.Struct("<IIQQQQQQ")  # kind, flags, offset, address, -, bytes in the file, -, -
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_KIND, _WRITABLE = 1, 2, 2
_NEEDED, _STRINGS, _END = 1, 5, 0


class Segment(NamedTuple):
    """A part of the file that is mapped into memory."""

    offset: int
    address: int
    size: int
    is_writable: bool


class Elf(NamedTuple):
    """What is mapped, and where it says what else it needs: offset and size of that, 0 where it needs nothing."""

    segments: tuple[Segment, ...]
    dynamic: int
    dynamic_size: int

    def offset_of(self, address: int) -> int | None:
        """Where in the file an address is."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return segment.offset + address - segment.address
        return None


def parse(head: bytes) -> Elf | None:
    """What the first bytes of a file say; None where it is no such file."""
    if not head.startswith(_MAGIC):
        return None
    segments: list[Segment] = []
    dynamic = dynamic_size = 0
    try:
        table, length, count = _HEADER.unpack_from(head)
        if table > len(head):
            return None
        for number in range(count):
            kind, flags, offset, address, _, size, _, _ = _SEGMENT.unpack_from(head, table + number * length)
            if kind == _LOAD:
                segments.append(Segment(offset, address, size, bool(flags & _WRITABLE)))
            elif kind == _DYNAMIC_KIND:
                dynamic, dynamic_size = offset, size
    except struct.error:
        return None
    return Elf(tuple(segments), dynamic, min(dynamic_size, MOST_DYNAMIC_BYTES))


def names_needed(elf: Elf, dynamic: bytes) -> list[int]:
    """Where in the file the names are of the libraries that it needs, each ended by a zero byte."""
    strings: int | None = None
    needed: list[int] = []
    for tag, value in _DYNAMIC.iter_unpack(dynamic[: len(dynamic) // _DYNAMIC.size * _DYNAMIC.size]):
        if tag == _NEEDED:
            needed.append(value)
        elif tag == _STRINGS:
            strings = elf.offset_of(value)
        elif tag == _END:
            break
    return [] if strings is None else [strings + place for place in needed]
