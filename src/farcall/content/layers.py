"""Archives as layers: what a tar stream changes in the tree below it, its files put into the store.

Source: OCI image-spec, "Image Layer Filesystem Changeset".
"""

import hashlib
import os
import stat

import msgspec

from farcall.content.adding import CHUNK_FILES, SMALL_FILE_BYTES, object_inode
from farcall.content.disk import disk_error, finish_file, printable, write_all
from farcall.content.files import hash_zeros
from farcall.content.lease import Lease, Readable
from farcall.content.scan import as_in_trees, kept_attributes
from farcall.content.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    TarReader,
)
from farcall.content.tree import FIRST_TIME_NS, LAST_TIME_NS, MAX_ID, MAX_NAME, MAX_TARGET, Diff, Entry, Tree, parents
from farcall.errors import ContentError

_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
_KINDS = {REGULAR: stat.S_IFREG, SYMLINK: stat.S_IFLNK, DIRECTORY: stat.S_IFDIR, FIFO: stat.S_IFIFO}
_MAX_SYMLINKS = 40  # that a path may lead through, as in Linux
_BATCH_BYTES = 4 * 1024 * 1024  # of small files that are put into the store together


def read_layer(lease: Lease, stream: Readable, base: Tree | None = None) -> Diff:
    """What a tar archive (plain, gzip or zstd) changes in `base`, an empty tree when None; its files are added.

    - `.wh.NAME` removes NAME from below, `.wh..wh..opq` all that its directory has below; never what the archive
      itself holds, wherever it stands in it. Other names that begin with `.wh..wh.` are AUFS's own, and left out.
    - Of several members with one path the last wins, as if they were unpacked one over the other.
    - A hard link is the same inode as its target, in the archive or below.
    - A path through a symlink of the same archive is followed within the tree, and cannot lead out of it; one through
      a symlink below replaces that by a directory, as in an overlay.
    - Devices in /dev are left out, since every container has its own; others are refused.
    - Extended attributes: see `is_kept_attribute`.

    The stream is read by another thread, but not after this has ended. Raises `ContentError` for paths with "..", hard
    links to nothing and what no tree can hold; `CorruptedError` for an archive that is damaged or truncated; what
    `disk_error` says; and what `stream` raises.
    """
    layer = _Layer(lease, base if base is not None else Tree.of([]))
    with TarReader(stream) as members:
        for member in members:
            layer.take(member)
    return layer.finish()


class _Layer:
    """A layer while it is read."""

    def __init__(self, lease: Lease, base: Tree) -> None:
        self._lease = lease
        self._base = base
        self._entries: dict[bytes, Entry] = {}
        self._inside: dict[bytes, set[bytes]] = {}  # of this layer's directories, explicit or not
        self._removed: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._links = 0  # numbers given to hard-linked files
        self._linked_below: dict[bytes, int] = {}  # files of the base that are linked to, by their first path
        self._batch: dict[bytes, tuple[bytes, tuple[int, int]]] = {}
        self._batch_bytes = 0

    def take(self, member: Member) -> None:
        path = self._resolve(member.name)
        parent, _, name = path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            if name == _OPAQUE:
                self._opaque.add(parent)
            elif not name.startswith(_AUFS):
                if name == _WHITEOUT:
                    raise ContentError(f"{printable(member.name)} of an archive removes nothing that has a name")
                self._removed.add(parent + b"/" + name[len(_WHITEOUT) :] if parent else name[len(_WHITEOUT) :])
        elif member.kind == HARD_LINK:
            self._take_link(path, member)
        elif member.kind in (CHARACTER, BLOCK_DEVICE):
            if not path.startswith(b"dev/"):
                raise ContentError(f"{printable(member.name)} of an archive is a device, which no image can hold")
        else:
            self._put(self._entry(path, member))

    def finish(self) -> Diff:
        self._flush()
        for first, number in self._linked_below.items():
            for entry in self._same_inode(first):
                if not self._is_covered(entry.path):
                    self._entries[entry.path] = msgspec.structs.replace(entry, link=number)
        return Diff(tuple(self._entries.values()), frozenset(self._removed), frozenset(self._opaque))

    def _entry(self, path: bytes, member: Member) -> Entry:
        kind = _KINDS.get(member.kind)
        if kind is None:
            raise ContentError(f"{printable(member.name)} of an archive is of the unknown kind {member.kind!r}")
        if not path and kind != stat.S_IFDIR:
            raise ContentError("the root of an archive is no directory")
        if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
            raise ContentError(f"{printable(member.name)} of an archive belongs to {member.uid}:{member.gid}")
        mode = kind | (0o777 if kind == stat.S_IFLNK else member.mode & 0o7777)
        mtime_ns = min(max(member.mtime_ns, FIRST_TIME_NS), LAST_TIME_NS)
        target, xattrs = b"", ()
        if kind == stat.S_IFLNK:
            target = member.target
            if not 0 < len(target) <= MAX_TARGET or b"\0" in target:
                raise ContentError(
                    f"the symlink {printable(member.name)} of an archive has no target that one can have"
                )
        elif member.xattrs:
            xattrs = kept_attributes(
                {name: as_in_trees(name, value, _same, _same) for name, value in member.xattrs.items()}
            )
        digest = b""
        if kind == stat.S_IFREG and member.size:
            digest = self._add(member, object_inode(mode, member.uid, member.gid, mtime_ns))
        size = member.size if digest else 0
        return Entry(path, mode, member.uid, member.gid, mtime_ns, size, digest, target, xattrs)

    def _put(self, entry: Entry) -> None:
        """Unpack `entry` over what the layer has so far."""
        if not entry.is_directory:
            self._remove_inside(entry.path)
        child = entry.path
        for parent in parents(entry.path):
            above = self._entries.get(parent)
            if above is not None and not above.is_directory:
                raise ContentError(
                    f"{printable(entry.path)} of an archive is within {printable(parent)}, which is no directory"
                )
            inside = self._inside.setdefault(parent, set())
            if child in inside:
                break
            inside.add(child)
            child = parent
        self._entries[entry.path] = entry

    def _remove_inside(self, path: bytes) -> None:
        pending = [path]
        while pending:
            children = self._inside.pop(pending.pop(), ())
            for child in children:
                self._entries.pop(child, None)
            pending += children

    def _take_link(self, path: bytes, member: Member) -> None:
        target = self._resolve(member.target)
        entry = self._entries.get(target)
        if entry is None and target not in self._inside and (below := self._base.get(target)) is not None:
            first = self._same_inode(below.path)[0].path
            if first not in self._linked_below:
                self._links += 1
            entry = msgspec.structs.replace(below, link=self._linked_below.setdefault(first, self._links))
        elif entry is not None and not entry.link:
            self._links += 1
            entry = self._entries[target] = msgspec.structs.replace(entry, link=self._links)
        if entry is None or entry.is_directory:
            raise ContentError(
                f"the hard link {printable(member.name)} of an archive leads to {printable(member.target)}, which is "
                "no file"
            )
        if target != path:
            self._put(msgspec.structs.replace(entry, path=path))

    def _same_inode(self, path: bytes) -> list[Entry]:
        """All names that a file of the base has, in order."""
        entry = self._base.get(path)
        if entry is None or not entry.link:
            return [] if entry is None else [entry]
        return [other for other in self._base if other.link == entry.link]

    def _is_covered(self, path: bytes) -> bool:
        """Whether a path of the base does not show any more through this layer, as far as it is read."""
        if path in self._entries or path in self._removed:
            return True
        for parent in parents(path):
            above = self._entries.get(parent)
            if parent in self._removed or parent in self._opaque or (above is not None and not above.is_directory):
                return True
        return False

    def _resolve(self, name: bytes) -> bytes:
        """The path that a name in the archive stands for, symlinks of this layer on the way to it followed."""
        pending = [part for part in name.split(b"/") if part not in (b"", b".")]
        if any(part == b".." or len(part) > MAX_NAME or b"\0" in part for part in pending):
            raise ContentError(f"an archive has the path {printable(name)}, which leads out of it or cannot exist")
        path = b"/".join(pending)
        followed = 0
        while (parent := next((one for one in parents(path) if self._is_symlink(one)), None)) is not None:
            followed += 1
            if followed > _MAX_SYMLINKS:
                raise ContentError(f"{printable(name)} of an archive leads through symlinks without an end")
            path = _follow(parent, self._entries[parent].target, path[len(parent) + 1 :])
        return path

    def _is_symlink(self, path: bytes) -> bool:
        entry = self._entries.get(path)
        return entry is not None and entry.is_symlink

    def _add(self, member: Member, inode: tuple[int, int]) -> bytes:
        """The digest of a file that is not empty, which is in the store after the next `_flush` at the latest."""
        if member.size > SMALL_FILE_BYTES:
            return self._write(member, inode)
        data = bytearray(member.size)
        for extent in member.data:
            data[extent.offset : extent.offset + len(extent.data)] = extent.data
        digest = hashlib.sha256(data).digest()
        self._batch[digest] = bytes(data), inode
        self._batch_bytes += len(data)
        if len(self._batch) >= CHUNK_FILES or self._batch_bytes > _BATCH_BYTES:
            self._flush()
        return digest

    def _write(self, member: Member, inode: tuple[int, int]) -> bytes:
        hasher = hashlib.sha256()
        with self._lease.new_file() as new:
            place = 0
            for extent in member.data:
                hash_zeros(hasher, extent.offset - place)
                hasher.update(extent.data)
                place = extent.offset + len(extent.data)
                try:
                    os.lseek(new.fd, extent.offset, os.SEEK_SET)
                    write_all(new.fd, extent.data)
                except OSError as error:
                    raise disk_error(error, "writing", new.path) from error
            hash_zeros(hasher, member.size - place)
            try:
                os.ftruncate(new.fd, member.size)
                finish_file(new.fd, *inode)
            except OSError as error:
                raise disk_error(error, "writing", new.path) from error
            new.publish(hasher.digest(), member.size)
        return hasher.digest()

    def _flush(self) -> None:
        for digest in self._lease.keep_objects({digest: len(data) for digest, (data, _) in self._batch.items()}):
            data, inode = self._batch[digest]
            self._lease.write_object(digest, data, *inode)
        self._batch.clear()
        self._batch_bytes = 0


def _follow(link: bytes, target: bytes, rest: bytes) -> bytes:
    """The path that `rest` in the symlink `link` stands for; ".." of the root directory is the root directory."""
    parts = [] if target.startswith(b"/") else link.split(b"/")[:-1]
    for part in (target + b"/" + rest).split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _same(id_: int) -> int:
    return id_
