"""What must stay: the trees and objects that leases and records name, as of the last look."""

import os
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from farcall.content.lease import OBJECT, TREE
from farcall.content.store import Store
from farcall.errors import NotFoundError

KEEP_DOWNLOADS = 7 * 86400.0  # seconds that what is left of a failed download waits for the next attempt
_LINE = 65  # characters of a lease's line: a letter and a digest


class Roots:
    """Everything that leases and records keep. It only grows: what is let go of is for the next collection.

    Leases are read before records: who lets a lease go has put the record before.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, int] = {}  # bytes of each lease's file that have been read
        self._records: dict[Path, tuple[int, int]] = {}  # inode and time of each record's file
        self._unread: set[str] = set()  # trees that were not there (yet)
        self.trees: set[str] = set()
        self.objects: set[bytes] = set()

    def read_leases(self) -> None:
        """See what leases keep, also those that have ended meanwhile."""
        for lease_id in os.listdir(self._store.root / "leases"):
            try:
                with (self._store.root / "leases" / lease_id).open("rb") as stream:
                    stream.seek(self._read.get(lease_id, 0))
                    data = stream.read()
            except FileNotFoundError:
                continue
            whole, newline, _ = data.rpartition(b"\n")
            self._read[lease_id] = self._read.get(lease_id, 0) + len(whole) + len(newline)
            for line in whole.decode().split("\n"):
                kind, name = line[-_LINE:][:1], line[-_LINE + 1 :]  # in front of them what a full disk tore off
                if kind == OBJECT:
                    self.objects.add(bytes.fromhex(name))
                elif kind == TREE:
                    self.add_tree(name)

    def refresh(self) -> None:
        """See what leases and records keep since the last time; the store must be held exclusively for it to be all.

        Raises `CorruptedError` for a record or a tree that cannot be read: nobody knows then what must stay.
        """
        self.read_leases()
        for path in self._store.record_files.files():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if self._records.get(path) != (status.st_ino, status.st_ctime_ns):
                record = self._store.record_files.at(path)
                for tree_id in record.trees if record is not None else ():
                    self.add_tree(tree_id)
                self._records[path] = status.st_ino, status.st_ctime_ns
        for tree_id in list(self._unread):
            self._read_tree(tree_id)

    def add_tree(self, tree_id: str) -> None:
        """A tree stays, with all that it names. Raises `CorruptedError` where it cannot be read."""
        if tree_id not in self.trees:
            self.trees.add(tree_id)
            self._read_tree(tree_id)

    def _read_tree(self, tree_id: str) -> None:
        try:
            self.objects |= self._store.tree(tree_id).digests()
        except NotFoundError:
            self._unread.add(tree_id)
        else:
            self._unread.discard(tree_id)


def remove_dead_leases(store: Store) -> None:
    """Remove the leases that nobody holds, and then work in progress that no lease is for.

    The store must be held exclusively: a lease that is just being made is held by nobody yet.
    """
    leases = store.root / "leases"
    for lease_id in os.listdir(leases):
        fd = os.open(leases / lease_id, os.O_RDWR | os.O_CLOEXEC)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            continue
        else:
            os.unlink(leases / lease_id)
        finally:
            os.close(fd)


def abandoned(store: Store) -> list[Path]:
    """Work in progress that no lease is for, and downloads that nobody came back for. The store must be held
    exclusively."""
    leases = set(os.listdir(store.root / "leases"))
    found = [store.root / "incoming" / name for name in os.listdir(store.root / "incoming") if name not in leases]
    for path in (store.root / "downloads").iterdir():
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEEP_DOWNLOADS:
                found.append(path)
    return found
