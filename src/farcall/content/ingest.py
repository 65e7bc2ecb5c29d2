"""A directory of the user's, as a tree in the store."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from farcall.content.disk import disk_error
from farcall.content.intake import Intake
from farcall.content.lease import Lease
from farcall.content.scan import VANISHED, Found, attributes, kept_attributes, walk
from farcall.content.statcache import Known, KnownFile, StatCache, is_settled
from farcall.content.tree import Entry, Tree
from farcall.errors import NotFoundError


def ingest_directory(
    lease: Lease,
    path: str | bytes | Path,
    *,
    ignore: Callable[[str], bool] | None = None,
    prune: bool = True,
    cache: StatCache | None = None,
    uid: int = 0,
    gid: int = 0,
    keep_owner: bool = False,
) -> str:
    """Add a directory as a tree; returns its id.

    What `ignore` is true of (a path relative to the directory) is left out; with `prune` also all that is in an
    ignored directory, without looking, and else an ignored directory is there if something in it is. Everything
    belongs to `uid` and `gid`; with `keep_owner` to whom it belongs here, and extended attributes are kept, too.

    With a `cache` files that have not been touched since the last time are not read. Symlinks stay what they are,
    also those that lead out; hard links and holes are kept. What vanishes meanwhile is left out. Raises `ContentError`
    for devices, and for a file that is written to all the time; else what `disk_error` says, with the path.
    """
    return _Ingest(lease, os.fsencode(path), ignore, prune, uid, gid, keep_owner).tree_id(cache)


class _Ingest:
    """One directory on its way into the store."""

    def __init__(
        self,
        lease: Lease,
        root: bytes,
        ignore: Callable[[str], bool] | None,
        prune: bool,
        uid: int,
        gid: int,
        keep_owner: bool,
    ) -> None:
        self._lease = lease
        self._root = os.path.abspath(root)
        self._ignore = ignore
        self._prune = prune
        self._uid, self._gid = uid, gid
        self._keep_owner = keep_owner

    def tree_id(self, cache: StatCache | None) -> str:
        looked_at_ns = time.time_ns()
        key = f"{os.fsdecode(self._root)} {self._uid} {self._gid} {self._keep_owner}"
        known = cache.load(key) if cache is not None else None
        if known is not None and not self._is_there(known.tree_id):
            known = None
        files = known.files if known is not None else {}
        found, same = self._look(files)
        if known is not None and not found and len(same) == len(files):
            return known.tree_id
        intake = Intake(self._lease, self._facts)
        for one in found:
            intake.take(one, self._attributes(one.full))
        entries = intake.finish()
        if known is not None:
            entries += self._as_before(known.tree_id, same)
        tree = Tree.of_found(entries)
        tree_id = self._lease.add_tree(tree)
        if cache is not None:
            now = {
                path: KnownFile.of(status)
                for path, status in intake.statuses.items()
                if is_settled(status, looked_at_ns)
            }
            cache.save(key, Known(tree_id, {path: files[path] for path in same} | now))
        return tree_id

    def _is_there(self, tree_id: str) -> bool:
        """Whether the tree is in the store; it then stays."""
        try:
            self._lease.keep_tree(tree_id)
        except NotFoundError:
            return False
        return True

    def _look(self, files: dict[bytes, KnownFile]) -> tuple[list[Found], list[bytes]]:
        """What is new or has changed since `files`, and the paths of what has not."""
        same: list[bytes] = []

        def is_same(path: bytes, status: os.stat_result) -> bool:
            before = files.get(path)
            if before is None or not before.is_still(status):
                return False
            same.append(path)
            return True

        is_ignored = self._ignore
        if is_ignored is None:
            return list(walk(self._root, is_known=is_same)), same
        if self._prune:
            return list(walk(self._root, lambda path: is_ignored(os.fsdecode(path)), is_same)), same
        found: list[Found] = []
        kept: set[bytes] = {b""}
        for one in reversed(list(walk(self._root))):
            if one.path in kept or not is_ignored(os.fsdecode(one.path)):
                kept.add(os.path.dirname(one.path))
                if not is_same(one.path, one.status):
                    found.append(one)
        return found, same

    def _as_before(self, tree_id: str, paths: list[bytes]) -> list[Entry]:
        """The entries that the tree has at these paths."""
        tree = self._lease.store.tree(tree_id)
        by_path = {entry.path: entry for entry in tree}
        found = [by_path[path] for path in paths]
        self._lease.keep_tree(tree_id, {entry.digest for entry in found})
        # Their numbers must not meet those of the hard links found now. Links of one file change together.
        return [entry if not entry.link else msgspec.structs.replace(entry, link=-entry.link) for entry in found]

    def _facts(self, status: os.stat_result) -> tuple[int, int, int]:
        if self._keep_owner:
            return status.st_uid, status.st_gid, status.st_mtime_ns
        return self._uid, self._gid, status.st_mtime_ns

    def _attributes(self, full: bytes) -> tuple[tuple[bytes, bytes], ...]:
        if not self._keep_owner:
            return ()
        try:
            return kept_attributes(attributes(full, _same, _same))
        except VANISHED:
            return ()
        except OSError as error:
            raise disk_error(error, "reading the attributes of", full) from error


def _same(id_: int) -> int:
    return id_
