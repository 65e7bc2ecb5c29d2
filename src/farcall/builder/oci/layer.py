"""A tree as one layer: a tar archive, the same bytes for the same tree."""

import hashlib
import stat
import tarfile
from os import fsdecode
from typing import Protocol

from farcall.content import Entry, Store, Tree
from farcall.content.disk import disk_error
from farcall.content.tree import shown
from farcall.errors import ContentError, CorruptedError, NotFoundError

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_CHUNK_BYTES = 1024 * 1024
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Writable(Protocol):
    """What a layer is written to."""

    def write(self, data: bytes, /) -> object: ...


def write_layer(store: Store, tree: Tree, target: Writable) -> None:
    """Write all of `tree`: owners, modes, times to the nanosecond, hard links, extended attributes.

    Sockets are left out: tar has no word for them, and no use. Every object's bytes are checked against its digest.
    Raises CorruptedError and NotFoundError for an object that is damaged or gone, ContentError for an attribute whose
    name a tar archive cannot hold.
    """
    first: dict[int, str] = {}  # link number to the path under which the file itself is written
    for entry in tree:
        kind = _TYPES.get(stat.S_IFMT(entry.mode))
        if kind is None:
            continue
        info = _info(entry, kind)
        if entry.link and entry.link in first:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, first[entry.link], 0
        elif entry.link:
            first[entry.link] = info.name
        target.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if info.size:
            _write_object(store, entry, target)
            target.write(bytes(-info.size % _BLOCK))
    target.write(_END)


def _info(entry: Entry, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(fsdecode(entry.path) or ".")
    info.type = kind
    info.mode = stat.S_IMODE(entry.mode)
    info.uid, info.gid = entry.uid, entry.gid
    info.size = entry.size
    info.linkname = fsdecode(entry.target)
    info.mtime, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    headers: dict[str, str] = {}
    if fraction:
        # The record's number is decimal: of -0.5 s the seconds are -1 and the fraction positive, which it cannot be.
        sign, rest = ("-", -entry.mtime_ns) if entry.mtime_ns < 0 else ("", entry.mtime_ns)
        headers["mtime"] = f"{sign}{rest // 1_000_000_000}.{rest % 1_000_000_000:09}".rstrip("0")
    for name, value in entry.xattrs:
        if b"=" in name or not name.isascii():
            raise ContentError(
                f"{shown(entry.path)} has an extended attribute {fsdecode(name)!r}, whose name a tar archive cannot "
                "hold. Remove the attribute in the image"
            )
        headers[f"SCHILY.xattr.{name.decode()}"] = fsdecode(value)
    info.pax_headers = headers
    return info


def _write_object(store: Store, entry: Entry, target: Writable) -> None:
    hasher = hashlib.sha256()
    path = store.object_path(entry.digest)
    left = entry.size
    try:
        with open(path, "rb", buffering=0) as file:
            while left and (data := file.read(min(left, _CHUNK_BYTES))):
                hasher.update(data)
                target.write(data)
                left -= len(data)
    except FileNotFoundError:
        raise NotFoundError(f"the content store {store.root} has no object {entry.digest.hex()}") from None
    except OSError as error:
        raise disk_error(error, "reading", path) from error
    if left or hasher.digest() != entry.digest:
        raise CorruptedError(
            f"object {entry.digest.hex()}, the file {shown(entry.path)}, is damaged. `farcall content verify` finds "
            "all that are, and takes them out of use"
        )
