"""tar archives as streams: ustar, pax and GNU, one member after the other, in constant memory.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar's manual, "Basic Tar Format"
and "Storing Sparse Files". Python's own tarfile takes three times as long for small members, guesses where an archive
is damaged, and cannot give names and attributes as the bytes that they are.
"""

import base64
import struct
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Self

from farcall.content.compression import Decompressed
from farcall.content.disk import printable
from farcall.content.lease import Readable
from farcall.content.readahead import CHUNK_BYTES, ReadAhead
from farcall.errors import CorruptedError

BLOCK = 512
MAX_HEADER_BYTES = 16 * 1024 * 1024  # of one member's pax records, long names and sparse maps

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_OLD_REGULAR, _CONTIGUOUS, _GNU_SPARSE = b"\0", b"7", b"S"
_LONG_NAME, _LONG_TARGET, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_VOLUME_LABEL = b"V"

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_ATTRIBUTE, _ATTRIBUTE_BASE64 = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."


@dataclass
class Member:
    """One member of an archive. `kind` is one of the constants above; names are as the archive has them.

    `size` is that of the file, holes included. `data` yields its bytes, and must be used up before the next member is
    asked for, or not begun at all.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    target: bytes
    xattrs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    data: Iterator["Extent"] = field(default_factory=lambda: iter(()))


@dataclass
class Extent:
    """Bytes of a file at an offset; what is between extents, and behind the last one, is zeros."""

    offset: int
    data: bytes


class TarReader:
    """The members of an archive, compressed by gzip or zstd or not at all, in order.

    Raises `CorruptedError` for an archive that is damaged or ends before its end-of-archive block. Extended headers are
    applied, sparse maps read. When the iteration has ended, the stream below has been read to its end.

    A context manager: within it the stream is read ahead by another thread.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = ReadAhead(Decompressed(stream))
        self._left = 0  # bytes of the current member, padding included, that have not been read
        self._global: dict[bytes, bytes] = {}

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def _next(self) -> Member | None:
        self._skip()
        name = target = None
        pax: dict[bytes, bytes] = {}
        sparse: list[tuple[int, int]] = []
        while True:
            header = _Header(block) if any(block := self._exactly(BLOCK, "a header")) else None
            if header is None:
                self._stream.drain()
                return None
            if header.kind == _LONG_NAME:
                name = self._extended(header).rstrip(b"\0")
            elif header.kind == _LONG_TARGET:
                target = self._extended(header).rstrip(b"\0")
            elif header.kind == _PAX:
                pax, sparse = _pax_records(self._extended(header))
            elif header.kind == _PAX_GLOBAL:
                self._global |= _pax_records(self._extended(header))[0]
            elif header.kind == _VOLUME_LABEL:
                self._left = _padded(header.size)
                self._skip()
            else:
                break
        member = Member(
            header.name if name is None else name,
            header.kind,
            header.mode,
            header.uid,
            header.gid,
            header.mtime * 1_000_000_000,
            header.size,
            header.target if target is None else target,
        )
        _apply(member, self._global | pax)
        if member.kind in (_OLD_REGULAR, _CONTIGUOUS, _GNU_SPARSE):
            member.kind = DIRECTORY if member.name.endswith(b"/") else REGULAR
        if member.kind == REGULAR:
            self._left = _padded(member.size)
            self._open(member, header, pax, sparse)
        return member

    def _open(self, member: Member, header: "_Header", pax: dict[bytes, bytes], sparse: list[tuple[int, int]]) -> None:
        """Make `data` of a regular file, whose `size` is that in the archive as yet."""
        stored = member.size
        if header.kind == _GNU_SPARSE:
            sparse, member.size = self._gnu_sparse(header)
        elif pax.get(b"GNU.sparse.major") == b"1":
            sparse, length = self._sparse_map(stored, member.name)
            stored -= length
            member.size = _decimal(pax.get(b"GNU.sparse.realsize", b""))
        elif b"GNU.sparse.size" in pax:
            if (given := pax.get(b"GNU.sparse.map")) is not None:
                numbers = [_decimal(number) for number in given.split(b",")] if given else []
                sparse = list(zip(numbers[::2], numbers[1::2], strict=False))
            member.size = _decimal(pax[b"GNU.sparse.size"])
        else:
            sparse = [(0, stored)] if stored else []
        place = 0
        for offset, length in sparse:
            if offset < place or length < 0 or offset + length > member.size:
                raise CorruptedError(f"{printable(member.name)} of an archive has a sparse map that makes no sense")
            place = offset + length
        if sum(length for _, length in sparse) != stored:
            raise CorruptedError(f"{printable(member.name)} of an archive has a sparse map for another length")
        member.data = self._data(member.name, sparse)

    def _data(self, name: bytes, extents: list[tuple[int, int]]) -> Iterator[Extent]:
        for offset, length in extents:
            while length > 0:
                data = self._take(min(length, CHUNK_BYTES), name)
                yield Extent(offset, data)
                offset += len(data)
                length -= len(data)

    def _gnu_sparse(self, header: "_Header") -> tuple[list[tuple[int, int]], int]:
        """The map of GNU's old format, in the header and the blocks behind it, and the file's size."""
        block, start, count, flag = header.block, 386, 4, 482
        found: list[tuple[int, int]] = []
        while True:
            for place in range(start, start + 24 * count, 24):
                if block[place + 12] != 0:
                    found.append((_number(block[place : place + 12]), _number(block[place + 12 : place + 24])))
            if block[flag] == 0:
                return [extent for extent in found if extent[1]], _number(header.block[483:495])
            if len(found) > MAX_HEADER_BYTES // 24:
                raise CorruptedError("a sparse map of an archive is too long")
            block, start, count, flag = self._exactly(BLOCK, "a sparse map"), 0, 21, 504

    def _sparse_map(self, stored: int, name: bytes) -> tuple[list[tuple[int, int]], int]:
        """The map of format 1.0, in front of the data, and the bytes it takes there."""
        text = b""
        numbers: list[int] = []
        wanted = 1
        while len(numbers) < wanted:
            if len(text) >= min(stored, MAX_HEADER_BYTES):
                raise CorruptedError(f"{printable(name)} of an archive has a sparse map without an end")
            text += self._take(BLOCK, name)
            numbers = [_decimal(number) for number in text.split(b"\n")[:-1]][: 1 + 2 * MAX_HEADER_BYTES]
            wanted = 1 + 2 * numbers[0] if numbers else 1
        numbers = numbers[1:wanted]
        return [extent for extent in zip(numbers[::2], numbers[1::2], strict=True) if extent[1]], len(text)

    def _extended(self, header: "_Header") -> bytes:
        if not 0 <= header.size <= MAX_HEADER_BYTES:
            raise CorruptedError(f"an archive has an extended header of {header.size:,} bytes")
        return self._exactly(_padded(header.size), "an extended header")[: header.size]

    def _take(self, size: int, name: bytes) -> bytes:
        data = self._exactly(size, printable(name))
        self._left -= size
        return data

    def _skip(self) -> None:
        while self._left > 0:
            self._left -= len(self._exactly(min(self._left, CHUNK_BYTES), "a file"))

    def _exactly(self, size: int, what: str) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise CorruptedError(f"an archive is truncated: it ends within {what}, or before its end-of-archive block")
        return data


class _Header:
    """One block that begins a member."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        (
            name, mode, uid, gid, size, mtime, checksum, self.kind, target, magic, _, _, _, _, _, prefix, _,
        ) = _HEADER.unpack(block)  # fmt: skip
        if _number(checksum) != sum(block) - sum(checksum) + 8 * 0x20:
            raise CorruptedError("an archive is damaged, or no tar archive: a header has another checksum")
        self.name = name.split(b"\0", 1)[0]
        self.target = target.split(b"\0", 1)[0]
        if magic == b"ustar\0" and prefix[0] != 0:
            self.name = prefix.split(b"\0", 1)[0] + b"/" + self.name
        self.mode, self.uid, self.gid = _number(mode), _number(uid), _number(gid)
        self.size, self.mtime = _number(size), _number(mtime)
        if self.size < 0:
            raise CorruptedError(f"{printable(self.name)} of an archive has {self.size} bytes")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256: the first byte 0x80, or 0xff for a negative number."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F if field[0] != 0xFF else 0xFF]) + field[1:], "big", signed=True)
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise CorruptedError(f"an archive is damaged, or no tar archive: a header has {field!r} for a number") from None


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise CorruptedError(f"an archive has an extended header with {digits[:40]!r} for a number")
    return int(digits)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_records(data: bytes) -> tuple[dict[bytes, bytes], list[tuple[int, int]]]:
    """The records of an extended header; and the sparse map of GNU's format 0.0, which repeats its keywords."""
    found: dict[bytes, bytes] = {}
    offsets: list[int] = []
    lengths: list[int] = []
    place = 0
    while place < len(data):
        digits, space, _ = data[place : place + 21].partition(b" ")
        length = _decimal(digits) if space else 0
        keyword, equals, value = data[place + len(digits) + 1 : place + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or place + length > len(data):
            raise CorruptedError("an archive has an extended header that cannot be read")
        value = value[:-1]
        if keyword == b"GNU.sparse.offset":
            offsets.append(_decimal(value))
        elif keyword == b"GNU.sparse.numbytes":
            lengths.append(_decimal(value))
        else:
            found[keyword] = value
        place += length
    return found, [extent for extent in zip(offsets, lengths, strict=False) if extent[1]]


def _apply(member: Member, records: dict[bytes, bytes]) -> None:
    """Let extended headers say what the header cannot. An empty value leaves it as the header has it."""
    for keyword, value in records.items():
        if keyword.startswith(_ATTRIBUTE):
            member.xattrs[keyword[len(_ATTRIBUTE) :]] = value
        elif keyword.startswith(_ATTRIBUTE_BASE64):
            member.xattrs.setdefault(*_base64_attribute(keyword[len(_ATTRIBUTE_BASE64) :], value))
        elif not value:
            continue
        elif keyword == b"path" or keyword == b"GNU.sparse.name":
            if b"GNU.sparse.name" not in records or keyword == b"GNU.sparse.name":
                member.name = value
        elif keyword == b"linkpath":
            member.target = value
        elif keyword == b"size":
            member.size = _decimal(value)
        elif keyword == b"uid":
            member.uid = _decimal(value)
        elif keyword == b"gid":
            member.gid = _decimal(value)
        elif keyword == b"mtime":
            try:
                member.mtime_ns = int(Decimal(value.decode("ascii")).scaleb(9).to_integral_value("ROUND_FLOOR"))
            except (InvalidOperation, ValueError, OverflowError):
                raise CorruptedError(f"an archive has {value[:40]!r} for a time") from None


def _base64_attribute(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """libarchive's way: the name percent-encoded, the value in base64 without padding."""
    try:
        return urllib.parse.unquote_to_bytes(name), base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except ValueError:
        raise CorruptedError(f"an archive has an extended attribute {printable(name)} that cannot be read") from None
