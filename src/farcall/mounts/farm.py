"""A tree as a plain directory whose files are hard links: what shows a tree where EROFS and overlayfs cannot.

A link shares mode, time and owner with every other link of the inode. An object's own inode may have those of the first
file with its content (`content.adding.object_inode`); for others there is a variant, a copy with mode, time and owner
as its entry has them, shared by all farms.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

from farcall.content.disk import disk_error
from farcall.content.lease import Lease
from farcall.content.tree import Entry, Tree
from farcall.errors import NotFoundError

_TOO_MANY_LINKS = errno.EMLINK


def make_farm(lease: Lease, tree: Tree, target: Path) -> None:
    """Makes the directory `target`/root that shows `tree`; it is there as a whole, or not at all.

    Owners other than root need a process that may give files away; without that right everything is root's, that is
    this process's own user's. The lease must keep the tree. Raises what `disk_error` says.
    """
    made = lease.scratch / f"farm-{secrets.token_hex(8)}"
    try:
        _Farm(lease, tree, made / "root").make()
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        raise disk_error(error, "making", target) from error
    finally:
        if made.exists():
            shutil.rmtree(made, ignore_errors=True)


class _Farm:
    """One farm in the making."""

    def __init__(self, lease: Lease, tree: Tree, root: Path) -> None:
        self._store = lease.store
        self._lease = lease
        self._tree = tree
        self._root = os.fsencode(root)
        self._variants = os.fspath(self._store.root / "variants")
        self._links: dict[int, bytes] = {}
        self._gives_away = os.geteuid() == 0

    def make(self) -> None:
        os.makedirs(self._root)
        mask = os.umask(0)
        try:
            for entry in self._tree.entries:
                path = self._root + b"/" + entry.path if entry.path else self._root
                if entry.is_directory:
                    if entry.path:
                        os.mkdir(path, 0o700)
                elif entry.link and entry.link in self._links:
                    os.link(self._links[entry.link], path)
                else:
                    self._make_file(entry, path)
                    if entry.link:
                        self._links[entry.link] = path
            # From the inside out: making files in a directory changes its time, and may be forbidden by its mode.
            for entry in reversed(self._tree.entries):
                if entry.is_directory:
                    self._finish(entry, self._root + b"/" + entry.path if entry.path else self._root)
        finally:
            os.umask(mask)

    def _make_file(self, entry: Entry, path: bytes) -> None:
        if entry.is_symlink:
            os.symlink(entry.target, path)
            self._finish(entry, path)
        elif not entry.is_regular:
            os.mknod(path, stat.S_IFMT(entry.mode) | 0o600)
            self._finish(entry, path)
        elif not entry.size:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            self._finish(entry, path)
        elif not entry.link:
            self._link_file(entry, path)
        else:
            # Its links are counted inside: a file of its own.
            self._copy(entry, path)

    def _link_file(self, entry: Entry, path: bytes) -> None:
        source = self._store.object_path(entry.digest)
        if not entry.xattrs and self._is_as(entry, source):
            try:
                os.link(source, path)
                return
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.EXDEV):
                    raise
        self._link_variant(entry, path)

    def _is_as(self, entry: Entry, source: str) -> bool:
        try:
            found = os.stat(source)
        except FileNotFoundError:
            raise NotFoundError(
                f"the content store {self._store.root} has no object {entry.digest.hex()}, which a tree names"
            ) from None
        owner = (0, 0) if self._gives_away else (found.st_uid, found.st_gid)
        wanted = (entry.uid, entry.gid) if self._gives_away else owner
        return (
            stat.S_IMODE(found.st_mode) == stat.S_IMODE(entry.mode)
            and found.st_mtime_ns == entry.mtime_ns
            and wanted == owner
        )

    def _link_variant(self, entry: Entry, path: bytes) -> None:
        """Links the variant with these attributes, made first where there is none."""
        identity = repr((entry.mode, entry.mtime_ns, entry.uid, entry.gid, entry.xattrs, self._gives_away))
        name = f"{entry.digest.hex()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        variant = f"{self._variants}/{name}"
        for _ in range(8):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.link(variant, path)
                    return
                except OSError as error:
                    if error.errno != _TOO_MANY_LINKS:
                        raise
                    os.unlink(variant)  # the next one begins anew; the links of this one stay
            made = os.fsencode(f"{self._lease.scratch}/{secrets.token_hex(8)}")
            self._copy(entry, made)
            os.rename(made, variant)
        raise OSError(errno.EBUSY, "it vanished again and again", variant)

    def _copy(self, entry: Entry, path: bytes) -> None:
        source = self._store.object_path(entry.digest)
        try:
            shutil.copyfile(source, path)
        except FileNotFoundError:
            raise NotFoundError(
                f"the content store {self._store.root} has no object {entry.digest.hex()}, which a tree names"
            ) from None
        self._finish(entry, path)

    def _finish(self, entry: Entry, path: bytes) -> None:
        """Owner, mode, attributes and time, in the order in which one does not undo the other."""
        if self._gives_away and (entry.uid or entry.gid):
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if not entry.is_symlink:
            os.chmod(path, stat.S_IMODE(entry.mode))
        for name, value in entry.xattrs:
            with contextlib.suppress(OSError):  # not every file system has every kind
                os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
