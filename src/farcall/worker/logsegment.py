"""One segment of an app's log: a file that is only ever appended to, and its index.

`N.log` is `MAGIC` and then one zlib stream of length-prefixed msgpack entries, flushed to a byte boundary at each
write: whatever has been written can be read, however the rest of the file was cut off. `N.idx`, made when the segment
is closed, says which times and ids are in it; without one (after a crash) the segment is simply read.
"""

import contextlib
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from farcall.wire.messages import LogEntry

MAGIC = b"fclog\x01\r\n"
# zlib with a window of 8 KiB holds 64 KiB of memory for each open segment instead of 256, for 2 % of size.
WINDOW_BITS = 13
MEMORY_LEVEL = 6
READ_BYTES = 64 * 1024

_LENGTH = struct.Struct(">I")


class SegmentIndex(msgspec.Struct, frozen=True, array_like=True):
    """What is in a segment. `hashes` are the CRC-32s of its call and container ids and function names, sorted, as
    native uint32: a name whose hash is absent is not in it, one whose hash is present most likely is."""

    min_time: float
    max_time: float
    hashes: bytes

    def may_contain(self, name: str) -> bool:
        hashes = array("I", self.hashes)
        wanted = zlib.crc32(name.encode())
        position = bisect_left(hashes, wanted)
        return position < len(hashes) and hashes[position] == wanted


_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(LogEntry)
_index_decoder = msgspec.msgpack.Decoder(SegmentIndex)


class SegmentWriter:
    """Appends to a new segment at `path` (which must not exist). Any method but `close` may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of the file
        self._file: BinaryIO = path.open("xb", buffering=0)
        self._compressor = zlib.compressobj(wbits=WINDOW_BITS, memLevel=MEMORY_LEVEL)
        self._min_time, self._max_time = float("inf"), float("-inf")
        self._hashes: set[int] = set()

    def write(self, entries: Iterable[LogEntry]) -> None:
        """Append and flush. After OSError none of these entries counts as written and the segment is to be closed."""
        parts: list[bytes] = []
        for entry in entries:
            encoded = _encode(entry)
            parts += (_LENGTH.pack(len(encoded)), encoded)
            self._min_time = min(self._min_time, entry.time)
            self._max_time = max(self._max_time, entry.time)
            for name in (entry.call_id, entry.container_id, entry.function):
                if name:
                    self._hashes.add(zlib.crc32(name.encode()))
        data = self._compressor.compress(b"".join(parts)) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        view = memoryview(data if self.size else MAGIC + data)
        size = len(view)
        while view:
            view = view[self._file.write(view) :]
        self.size += size

    def close(self) -> None:
        """Leave a readable segment with its index behind, or no file when nothing was written. Never raises."""
        with contextlib.suppress(OSError), self._file:
            self._file.truncate(self.size)
        if not self.size:
            remove_segment(self.path)
            return
        hashes = array("I", sorted(self._hashes)).tobytes()
        _write_index(self.path, SegmentIndex(self._min_time, self._max_time, hashes))


def read_segment(path: Path) -> Iterator[LogEntry]:
    """The entries that can be read, in the order of writing; a rest that is cut, damaged or gone ends it silently."""
    buffer = bytearray()
    for piece in _decompressed(path):
        buffer += piece
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                entry = _entry_decoder.decode(memoryview(buffer)[start + _LENGTH.size : end])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return
            yield entry
            start = end
        del buffer[:start]


def read_index(path: Path) -> SegmentIndex | None:
    """The index of the segment at `path`; None when it has none that can be read."""
    try:
        return _index_decoder.decode(path.with_suffix(".idx").read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def remove_segment(path: Path) -> None:
    """Remove the segment and its index. Never raises."""
    for file in (path, path.with_suffix(".idx")):
        with contextlib.suppress(OSError):
            file.unlink()


def _encode(entry: LogEntry) -> bytes:
    try:
        return _encoder.encode(entry)
    except UnicodeEncodeError:  # lone surrogates, which an output decoded with "surrogateescape" has
        return _encoder.encode(msgspec.structs.replace(entry, text=entry.text.encode(errors="replace").decode()))


def _decompressed(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return
            decompressor = zlib.decompressobj()
            while data := file.read(READ_BYTES):
                while data:
                    yield decompressor.decompress(data, 1024 * 1024)
                    data = decompressor.unconsumed_tail
    except (OSError, zlib.error):
        return


def _write_index(path: Path, index: SegmentIndex) -> None:
    final = path.with_suffix(".idx")
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(_encoder.encode(index))
        temporary.replace(final)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
