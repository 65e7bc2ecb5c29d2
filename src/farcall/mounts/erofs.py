"""EROFS images that hold names only: what the kernel mounts to show a tree without a copy of its files.

An image has the tree's directories, symlinks and inodes. A file that is not empty has no data in it but two attributes
that overlayfs follows: `trusted.overlay.metacopy` says that the data are elsewhere, `trusted.overlay.redirect` where,
as a path in the data-only layer, which is the store's folder of objects.

The format is that of the kernel's fs/erofs/erofs_fs.h: little endian, blocks of 4 KiB, uncompressed. Inodes are
"extended" ones of 64 bytes at multiples of 32 bytes, whose number (nid) is their place divided by 32. Behind an inode
follow its attributes, then the inline tail of a directory or a symlink's target, which must not cross a block, or a
file's chunk map, here of one chunk, a hole. Whole blocks of directories come behind all inodes.
"""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from farcall.content.tree import Entry, Tree, shown
from farcall.errors import InvalidError

BLOCK = 4096
_SLOT = 32  # bytes; nids count these
_SUPER_AT = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_MAGIC = 0xE0F5E1E2
_CHUNKED_FILE = 0x4  # EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
_FIRST_INODE = _SUPER_AT + 128

_INODE = struct.Struct("<HHHHQIIIIqII16x")
_EXTENDED = 1
_PLAIN, _INLINE, _CHUNKS = 0 << 1, 2 << 1, 4 << 1  # data layouts, as bits of i_format
_DIRENT = struct.Struct("<QHBx")
_HOLE = b"\xff\xff\xff\xff"

_ATTRIBUTE = struct.Struct("<BBH")
_ATTRIBUTES_HEADER = bytes(12)  # no filter, none shared
_MAX_VALUE = 2**16 - 1  # bytes of one attribute
_MAX_ATTRIBUTES = 4 * (2**16 - 2)  # bytes of an inode's together
# Attribute names are stored as the number of a prefix and the rest.
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def image_of(tree: Tree) -> bytes:
    """The EROFS image that shows `tree` over a data-only layer of objects. The same tree gives the same bytes.

    Raises InvalidError for extended attributes that are larger than the format allows.
    """
    return _Writer(tree).write()


class _Inode(NamedTuple):
    """An inode's place and what follows it there."""

    at: int  # bytes from the beginning of the image
    attributes: bytes
    tail: bytes  # of a symlink; a directory's is made when all places are known


class _Directory:
    """The names of one directory, shared out among blocks."""

    __slots__ = ("blocks", "inline", "size")

    def __init__(self, names: list[bytes]) -> None:
        self.blocks: list[list[bytes]] = []
        used = BLOCK + 1
        for name in names:
            need = _DIRENT.size + len(name)
            if used + need > BLOCK:
                self.blocks.append([])
                used = 0
            self.blocks[-1].append(name)
            used += need
        self.inline = used  # bytes of the last block
        self.size = BLOCK * (len(self.blocks) - 1) + used


class _Writer:
    """One image in the making."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._inodes: dict[bytes, _Inode] = {}  # by path; hard links have one
        self._directories: dict[bytes, _Directory] = {}
        self._children: dict[bytes, dict[bytes, Entry]] = {}
        self._links: dict[int, int] = {}
        self._first: dict[int, bytes] = {}
        self._subdirectories: dict[bytes, int] = {}
        for entry in tree.entries:
            if entry.is_directory:
                self._children[entry.path] = {}
                self._subdirectories[entry.path] = 0
            if entry.path:
                parent, _, name = entry.path.rpartition(b"/")
                self._children[parent][name] = entry
                if entry.is_directory:
                    self._subdirectories[parent] += 1
            if entry.link:
                self._links[entry.link] = self._links.get(entry.link, 0) + 1
                self._first.setdefault(entry.link, entry.path)

    def write(self) -> bytes:
        end = self._place_all()
        blocks_at = -(-end // BLOCK)
        blocks: list[bytes] = []
        image = bytearray(blocks_at * BLOCK)
        for number, entry in enumerate(self._tree.entries, 1):
            if entry.link and self._first[entry.link] != entry.path:
                continue
            made = self._encode(number, entry, blocks_at + len(blocks), blocks)
            at = self._inodes[entry.path].at
            image[at : at + len(made)] = made
        count = blocks_at + len(blocks)
        _SUPER.pack_into(
            image,
            _SUPER_AT,
            _MAGIC,
            0,  # checksum, not used
            0,  # compatible features
            BLOCK.bit_length() - 1,
            0,
            self._nid(b""),
            len(self._tree.entries),
            0,
            0,
            count,
            0,  # where inodes begin, and the shared attributes, of which there are none
            0,
            bytes.fromhex(self._tree.id)[:16],
            b"",
            _CHUNKED_FILE,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        return b"".join([image, *blocks])

    def _place_all(self) -> int:
        """Give each inode its place; returns where they end."""
        at = _FIRST_INODE
        for entry in self._tree.entries:
            if entry.link and self._first[entry.link] != entry.path:
                self._inodes[entry.path] = self._inodes[self._first[entry.link]]
                continue
            attributes = _attributes(entry)
            size = _INODE.size + len(attributes)
            tail = 0
            if entry.is_directory:
                directory = _Directory(sorted([b".", b"..", *self._children[entry.path]]))
                self._directories[entry.path] = directory
                tail = directory.inline if size + directory.inline <= BLOCK else 0
                if not tail:
                    directory.inline = 0
            elif entry.is_symlink:
                tail = len(entry.target)
            elif entry.size:
                size += len(_HOLE)
            if tail and at % BLOCK + size + tail > BLOCK and size + tail <= BLOCK:
                at = -(-at // BLOCK) * BLOCK
            self._inodes[entry.path] = _Inode(at, attributes, entry.target)
            at += -(-(size + tail) // _SLOT) * _SLOT
        return at

    def _nid(self, path: bytes) -> int:
        return self._inodes[path].at // _SLOT

    def _encode(self, number: int, entry: Entry, block_at: int, blocks: list[bytes]) -> bytes:
        """The inode with what follows it; whole blocks of a directory are added to `blocks`."""
        inode = self._inodes[entry.path]
        layout, data, tail, size, links = _PLAIN, 0, b"", entry.size, self._links.get(entry.link, 1)
        if entry.is_directory:
            directory = self._directories[entry.path]
            encoded = [self._dirents(entry.path, names) for names in directory.blocks]
            if directory.inline:
                layout, tail = _INLINE, encoded.pop()
            data = block_at
            blocks += [block.ljust(BLOCK, b"\0") for block in encoded]
            size = directory.size
            links = 2 + self._subdirectories[entry.path]
        elif entry.is_symlink:
            size = len(entry.target)
            if _INODE.size + len(inode.attributes) + size <= BLOCK:
                layout, tail = _INLINE, entry.target
            else:
                data = block_at
                blocks.append(entry.target.ljust(BLOCK, b"\0"))
        elif size:
            layout, tail = _CHUNKS, _HOLE
            data = max(0, (size - 1).bit_length() - (BLOCK.bit_length() - 1))
        seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
        header = _INODE.pack(
            _EXTENDED | layout,
            (len(inode.attributes) - len(_ATTRIBUTES_HEADER)) // 4 + 1 if inode.attributes else 0,
            entry.mode,
            0,
            size,
            data,
            number,
            entry.uid,
            entry.gid,
            seconds,
            nanoseconds,
            links,
        )
        return header + inode.attributes + tail

    def _dirents(self, path: bytes, names: list[bytes]) -> bytes:
        """One block of a directory: the entries, then the names."""
        children = self._children[path]
        offset = _DIRENT.size * len(names)
        made: list[bytes] = []
        for name in names:
            child = children.get(name)
            if child is None:
                where = path if name == b"." else path.rpartition(b"/")[0]
                made.append(_DIRENT.pack(self._nid(where), offset, _FILE_TYPES[stat.S_IFDIR]))
            else:
                made.append(_DIRENT.pack(self._nid(child.path), offset, _FILE_TYPES[stat.S_IFMT(child.mode)]))
            offset += len(name)
        return b"".join([*made, *names])


def _attributes(entry: Entry) -> bytes:
    """The attributes of an entry as they follow its inode, with those that overlayfs reads."""
    made = [_attribute(name, value) for name, value in entry.xattrs]
    if entry.size:
        name = entry.digest.hex()
        made.append(_METACOPY)
        made.append(_attribute(b"trusted.overlay.redirect", f"/{name[:2]}/{name[2:]}".encode()))
    if sum(map(len, made)) > _MAX_ATTRIBUTES:
        raise InvalidError(
            f"{shown(entry.path)} has more extended attributes than EROFS takes ({_MAX_ATTRIBUTES} bytes)"
        )
    return _ATTRIBUTES_HEADER + b"".join(made) if made else b""


def _attribute(name: bytes, value: bytes) -> bytes:
    if len(value) > _MAX_VALUE:
        raise InvalidError(f"an extended attribute has {len(value)} bytes, and EROFS takes {_MAX_VALUE}")
    prefix, number = next((prefix, number) for prefix, number in _PREFIXES if name.startswith(prefix))
    rest = name[len(prefix) :]
    made = _ATTRIBUTE.pack(len(rest), number, len(value)) + rest + value
    return made.ljust(-(-len(made) // 4) * 4, b"\0")


_METACOPY = _attribute(b"trusted.overlay.metacopy", b"")
