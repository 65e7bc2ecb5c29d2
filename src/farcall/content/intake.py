"""From names found in a directory to entries of a tree, their files in the store."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from farcall.content.adding import Added, FileToAdd, add_files, object_inode
from farcall.content.disk import disk_error, printable
from farcall.content.lease import Lease
from farcall.content.scan import VANISHED, Found
from farcall.content.tree import FIRST_TIME_NS, LAST_TIME_NS, Entry
from farcall.errors import ContentError

Attributes = tuple[tuple[bytes, bytes], ...]
Facts = Callable[[os.stat_result], tuple[int, int, int]]  # owner, group and time in ns that an entry gets


@dataclass(slots=True)
class _Inode:
    """A regular file to be added, under all the names it was found with."""

    full: bytes
    seen: os.stat_result
    names: list[tuple[bytes, Attributes]] = field(default_factory=list[tuple[bytes, Attributes]])


class Intake:
    """Takes names one by one, then adds all regular files among them together, each hard-linked one once.

    An entry says what its file was when it was read, not when it was found. With `move` the files may be moved away.
    """

    def __init__(self, lease: Lease, facts: Facts, *, move: bool = False) -> None:
        self._lease = lease
        self._facts = facts
        self._move = move
        self._entries: list[Entry] = []
        self._inodes: list[_Inode] = []
        self._linked: dict[tuple[int, int], _Inode] = {}
        self._links: dict[tuple[int, int], int] = {}
        self.statuses: dict[bytes, os.stat_result] = {}
        """What each name was when its entry was made; complete after `finish`."""

    def take(self, found: Found, xattrs: Attributes = ()) -> None:
        """Take a name. Raises `ContentError` for a device, else what `disk_error` says."""
        status = found.status
        if stat.S_ISREG(status.st_mode):
            self._inode(found).names.append((found.path, xattrs))
            return
        uid, gid, mtime_ns = self._entry_facts(status)
        mode, target = status.st_mode, b""
        if stat.S_ISLNK(mode):
            mode = stat.S_IFLNK | 0o777
            try:
                target = os.readlink(found.full)
            except VANISHED:
                return
            except OSError as error:
                raise disk_error(error, "reading", found.full) from error
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise ContentError(f"{printable(found.full)} is a device, which no image can hold. Leave it out")
        self.statuses[found.path] = status
        self._entries.append(Entry(found.path, mode, uid, gid, mtime_ns, 0, b"", target, xattrs, self._link(status)))

    def take_known(self, found: Found, digest: bytes, xattrs: Attributes = ()) -> None:
        """Take a regular file whose bytes are an object that is in the store and stays there."""
        self._take_file(found.path, xattrs, Added(digest, found.status))

    def finish(self) -> list[Entry]:
        """Add the files; all entries, in no order. Raises what `add_files` raises."""
        files = [FileToAdd(inode.full, inode.seen, self._object_inode) for inode in self._inodes]
        for inode, added in zip(self._inodes, add_files(self._lease, files, move=self._move), strict=True):
            if added is not None:
                for path, xattrs in inode.names:
                    self._take_file(path, xattrs, added)
        return self._entries

    def _entry_facts(self, status: os.stat_result) -> tuple[int, int, int]:
        uid, gid, mtime_ns = self._facts(status)
        return uid, gid, min(max(mtime_ns, FIRST_TIME_NS), LAST_TIME_NS)

    def _inode(self, found: Found) -> _Inode:
        status = found.status
        if status.st_nlink == 1:
            self._inodes.append(made := _Inode(found.full, status))
            return made
        made = self._linked.get((status.st_dev, status.st_ino))
        if made is None:
            made = self._linked[status.st_dev, status.st_ino] = _Inode(found.full, status)
            self._inodes.append(made)
        return made

    def _take_file(self, path: bytes, xattrs: Attributes, added: Added) -> None:
        status = added.status
        uid, gid, mtime_ns = self._entry_facts(status)
        entry = Entry(
            path, status.st_mode, uid, gid, mtime_ns, status.st_size, added.digest, b"", xattrs, self._link(status)
        )
        self._entries.append(entry)
        self.statuses[path] = status

    def _link(self, status: os.stat_result) -> int:
        """The number of a file with hard links, 0 of any other."""
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            return 0
        return self._links.setdefault((status.st_dev, status.st_ino), len(self._links) + 1)

    def _object_inode(self, status: os.stat_result) -> tuple[int, int]:
        return object_inode(status.st_mode, *self._entry_facts(status))
