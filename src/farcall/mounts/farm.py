"""A tree as a plain directory whose files are hard links: what shows a tree where EROFS and overlayfs cannot.

A link shares mode, time and owner with every other link of its inode. An object's own inode may have those of the first
file with its content (`content.adding.object_inode`); for others there is a variant, a copy with mode, time and owner
as its entry has them, shared by all farms. Files of one tree never share an inode unless the tree says so: programs
would take them for one file, and a copy of the tree would be wrong. So the second file with equal content and
attributes is another variant.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections import Counter
from pathlib import Path

from farcall.content.disk import disk_error, remove_all
from farcall.content.files import copy_file, open_file
from farcall.content.lease import Lease
from farcall.content.threads import side_by_side
from farcall.content.tree import Entry, Tree
from farcall.errors import CorruptedError, NotFoundError
from farcall.spec.container import IdMap, MountMode

_FICLONE = 0x40049409  # shares the blocks of a file, on file systems that can
_ATTEMPTS = 8  # at a variant that a garbage collection removes between its making and its use
_CHUNK = 200  # files that a thread takes at a time


def outside(id_map: IdMap, inside: int) -> int:
    """What an id becomes under a map: what root becomes, where the map does not have it; itself, if there is none."""
    if not id_map:
        return inside
    for first_inside, first_outside, count in id_map:
        if first_inside <= inside < first_inside + count:
            return first_outside + inside - first_inside
    return outside(id_map, 0) if inside else id_map[0][1]


def make_farm(lease: Lease, tree: Tree, target: Path, mode: MountMode) -> None:
    """Makes the directory `target`/root that shows `tree`; it is there as a whole, or not at all.

    Files belong to whom `mode` says; the process must be root where the launcher is. The lease must keep the tree.
    Raises `NotFoundError` and `CorruptedError` for objects, and what `disk_error` says.
    """
    made = lease.scratch / f"farm-{secrets.token_hex(8)}"
    mask = os.umask(0)
    try:
        _Farm(lease, tree, made / "root", mode).make()
        target.parent.mkdir(mode=0o755, exist_ok=True)
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was faster
                raise
    except OSError as error:
        raise disk_error(error, "making", target) from error
    finally:
        os.umask(mask)
        if made.exists():
            remove_all(made)


class _Farm:
    """One farm in the making."""

    def __init__(self, lease: Lease, tree: Tree, root: Path, mode: MountMode) -> None:
        self._store = lease.store
        self._scratch = os.fspath(lease.scratch)
        self._tree = tree
        self._root = os.fsencode(root)
        self._mode = mode
        self._variants = os.fspath(self._store.root / "variants")

    def make(self) -> None:
        os.makedirs(self._root)
        directories = [entry for entry in self._tree if entry.is_directory]
        for entry in directories[1:]:
            os.mkdir(self._path(entry), 0o700)
        first: dict[int, Entry] = {}
        again: list[Entry] = []
        single: list[tuple[Entry, int]] = []  # with how many files before it are the same but for their place
        seen: Counter[tuple[object, ...]] = Counter()
        for entry in self._tree:
            if entry.is_directory:
                continue
            if entry.link and first.setdefault(entry.link, entry) is not entry:
                again.append(entry)
                continue
            same = (entry.digest, entry.mode, entry.mtime_ns, entry.uid, entry.gid, entry.xattrs)
            single.append((entry, seen[same]))
            if entry.digest:
                seen[same] += 1
        side_by_side(self._make_files, [single[at : at + _CHUNK] for at in range(0, len(single), _CHUNK)])
        for entry in again:
            os.link(self._path(first[entry.link]), self._path(entry), follow_symlinks=False)
        # From the inside out: making files in a directory changes its time, and may be forbidden by its mode.
        for entry in reversed(directories):
            self._finish(entry, self._path(entry))

    def _path(self, entry: Entry) -> bytes:
        return self._root + b"/" + entry.path if entry.path else self._root

    def _make_files(self, files: list[tuple[Entry, int]]) -> None:
        for entry, before in files:
            path = self._path(entry)
            if entry.size:
                self._link(entry, before, path)
                continue
            if entry.is_symlink:
                os.symlink(entry.target, path)
            elif entry.is_regular:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            else:
                os.mknod(path, stat.S_IFMT(entry.mode) | 0o600)
            self._finish(entry, path)

    def _link(self, entry: Entry, before: int, path: bytes) -> None:
        """Links the object where it has these attributes itself and is not in this farm yet; else a variant."""
        source = self._store.object_path(entry.digest)
        if before == 0 and not entry.xattrs and self._is_as(entry, source):
            try:
                os.link(source, path)
                return
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
        owner = self._owner(entry)
        identity = repr((entry.mode, entry.mtime_ns, owner, entry.xattrs, before))
        name = f"{entry.digest.hex()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        variant = f"{self._variants}/{name}"
        for _ in range(_ATTEMPTS):
            try:
                os.link(variant, path)
                return
            except FileNotFoundError:
                made = f"{self._scratch}/{secrets.token_hex(8)}"
                self._copy(entry, made)
                os.rename(made, variant)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                os.unlink(variant)  # the next one begins anew; the links of this one stay
        raise OSError(errno.EBUSY, "it vanished again and again", variant)

    def _is_as(self, entry: Entry, source: str) -> bool:
        try:
            found = os.stat(source)
        except FileNotFoundError:
            raise self._missing(entry) from None
        return (
            stat.S_IMODE(found.st_mode) == stat.S_IMODE(entry.mode)
            and found.st_mtime_ns == entry.mtime_ns
            and (found.st_uid, found.st_gid) == self._owner(entry)
        )

    def _owner(self, entry: Entry) -> tuple[int, int]:
        return outside(self._mode.uid_map, entry.uid), outside(self._mode.gid_map, entry.gid)

    def _copy(self, entry: Entry, path: str) -> None:
        try:
            source, status = open_file(self._store.object_path(entry.digest))
        except NotFoundError:
            raise self._missing(entry) from None
        try:
            target = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                if not _clone(source, target) and copy_file(source, target, status.st_size) != entry.digest:
                    raise CorruptedError(
                        f"object {entry.digest.hex()} is damaged: its {status.st_size:,} bytes have another hash. "
                        "`farcall content verify` finds all that are, and takes them out of use"
                    )
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._finish(entry, os.fsencode(path))

    def _missing(self, entry: Entry) -> NotFoundError:
        return NotFoundError(
            f"the content store {self._store.root} has no object {entry.digest.hex()}, which a tree names"
        )

    def _finish(self, entry: Entry, path: bytes) -> None:
        """Owner, mode, attributes and time, in the order in which one does not undo the other."""
        owner = self._owner(entry)
        if owner != (0, 0):
            os.chown(path, *owner, follow_symlinks=False)
        if not entry.is_symlink:
            os.chmod(path, stat.S_IMODE(entry.mode))
        for name, value in entry.xattrs:
            with contextlib.suppress(OSError):  # not every file system has every kind
                os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
