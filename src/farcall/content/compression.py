"""Streams that may be compressed, read as what is in them; and bytes made smaller, and whole again."""

import sys
import zlib
from collections.abc import Iterator
from typing import IO, cast

from farcall.content.lease import Readable
from farcall.content.readahead import CHUNK_BYTES, Pieces
from farcall.errors import ContentError, CorruptedError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([byte, 0x2A, 0x4D, 0x18]) for byte in range(0x50, 0x60))
_LEVEL = 3  # of zstd, for what is compressed here
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x5d\0\0": "lzma", b"PK\3\4": "zip"}


class Decompressed(Pieces):
    """What is in a stream: gzip, zstd, or neither, told by its first bytes. Any number of members or frames.

    Raises `CorruptedError` for a stream that is damaged or, other than with zstd, ends too early, and `ContentError`
    for other compressions. Errors of the stream below come through. Memory stays flat, whatever a stream expands to.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        first = _read_full(stream, 6)
        name = next((name for magic, name in _OTHERS.items() if first.startswith(magic)), None)
        if name is not None:
            raise ContentError(f"an archive that is compressed by {name}: only gzip, zstd and none can be read")
        super().__init__(self._decompressed(first))

    def _decompressed(self, first: bytes) -> Iterator[bytes]:
        if first.startswith(_GZIP):
            return self._gunzipped(first)
        if first.startswith(_ZSTD) or first.startswith(_ZSTD_SKIPPABLE):
            return _unzstd(_Rest(first, self._stream))
        return self._plain(first)

    def _plain(self, first: bytes) -> Iterator[bytes]:
        yield first
        while chunk := self._stream.read(CHUNK_BYTES):
            yield chunk

    def _gunzipped(self, data: bytes) -> Iterator[bytes]:
        member = zlib.decompressobj(wbits=31)
        while True:
            try:
                chunk = member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise CorruptedError(f"a gzip stream is damaged: {error}") from None
            if chunk:
                yield chunk
            if member.eof:
                # Zeros behind the last member are padding, as gzip(1) has it.
                data = member.unused_data.lstrip(b"\0")
                while not data:
                    data = self._stream.read(CHUNK_BYTES)
                    if not data:
                        return
                    data = data.lstrip(b"\0")
                member = zlib.decompressobj(wbits=31)
                continue
            data = member.unconsumed_tail
            if not data and len(chunk) < CHUNK_BYTES:
                data = self._stream.read(CHUNK_BYTES)
                if not data:
                    raise CorruptedError("a gzip stream is truncated")


class _Rest:
    """A stream whose first bytes have been read already."""

    def __init__(self, first: bytes, stream: Readable) -> None:
        self._first = first
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._stream.read(size)


def _read_full(stream: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := stream.read(size - len(data))):
        data += chunk
    return data


if sys.version_info >= (3, 14):
    from compression import zstd

    def compress(data: bytes) -> bytes:
        """One zstd frame, fast rather than small."""
        return zstd.compress(data, _LEVEL)

    def decompress(data: bytes | memoryview, most: int, title: str) -> bytes:
        """What is in one zstd frame. Raises `CorruptedError`, which says `title`, where it is damaged or cut off, or
        has more than `most` bytes in it."""
        decompressor = zstd.ZstdDecompressor()
        try:
            found = decompressor.decompress(data, most + 1)
        except zstd.ZstdError as error:
            raise CorruptedError(f"{title} is damaged: {error}") from None
        if not decompressor.eof:
            raise CorruptedError(f"{title} is cut off, or has more than {most:,} bytes")
        return found

    def _unzstd(stream: _Rest) -> Iterator[bytes]:
        try:
            with zstd.ZstdFile(stream) as reader:
                while chunk := reader.read(CHUNK_BYTES):
                    yield chunk
        except (zstd.ZstdError, EOFError) as error:
            raise CorruptedError(f"a zstd stream is damaged: {error}") from None

else:

    def compress(data: bytes) -> bytes:
        """One zstd frame, fast rather than small."""
        import zstandard

        return zstandard.ZstdCompressor(level=_LEVEL).compress(data)

    def decompress(data: bytes | memoryview, most: int, title: str) -> bytes:
        """What is in one zstd frame. Raises `CorruptedError`, which says `title`, where it is damaged or cut off, or
        has more than `most` bytes in it."""
        import zstandard

        try:
            # A frame that says how much is in it is believed: so it is asked before the memory is taken.
            if zstandard.frame_content_size(data) > most:
                raise CorruptedError(f"{title} has more than {most:,} bytes")
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=most + 1)
        except zstandard.ZstdError as error:
            raise CorruptedError(f"{title} is damaged: {error}") from None

    def _unzstd(stream: _Rest) -> Iterator[bytes]:
        # This reader takes the end of the stream for the end of a frame. What is missing then is missed by whoever
        # reads the archive, which has an end of its own. (The library's other ways have no bound on memory.)
        import zstandard

        source = cast("IO[bytes]", stream)  # all it wants of it is `read`
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_size=CHUNK_BYTES, read_across_frames=True)
        try:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
        except zstandard.ZstdError as error:
            raise CorruptedError(f"a zstd stream is damaged: {error}") from None
