"""A directory of the user's, as a tree in the store."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from farcall.content.disk import disk_error
from farcall.content.intake import Intake
from farcall.content.lease import Lease
from farcall.content.scan import VANISHED, Found, attributes, kept_attributes, walk
from farcall.content.statcache import Known, KnownFile, StatCache, is_settled
from farcall.content.tree import Tree
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
        found = self._look()
        key = f"{os.fsdecode(self._root)} {self._uid} {self._gid} {self._keep_owner}"
        known = cache.load(key) if cache is not None else None
        files = known.files if known is not None else {}
        same = {
            one.path: before
            for one in found
            if (before := files.get(one.path)) is not None and before.is_still(one.status)
        }
        if known is not None and self._is_kept(known, same):
            if len(same) == len(found) == len(files):
                return known.tree_id
            reusable = same
        else:
            reusable = self._still_stored(same)
        intake = Intake(self._lease, self._facts)
        for one in found:
            xattrs = self._attributes(one.full)
            before = reusable.get(one.path)
            if before is not None and stat.S_ISREG(one.status.st_mode):
                intake.take_known(one, before.digest, xattrs)
            else:
                intake.take(one, xattrs)
        tree = Tree.of(intake.finish())
        tree_id = self._lease.add_tree(tree)
        if cache is not None:
            cache.save(key, _known(tree, intake.statuses, looked_at_ns))
        return tree_id

    def _look(self) -> list[Found]:
        if self._ignore is None:
            return list(walk(self._root))
        is_ignored = self._ignore
        if self._prune:
            return list(walk(self._root, lambda path: is_ignored(os.fsdecode(path))))
        found: list[Found] = []
        kept: set[bytes] = {b""}
        for one in reversed(list(walk(self._root))):
            if one.path in kept or not is_ignored(os.fsdecode(one.path)):
                found.append(one)
                kept.add(os.path.dirname(one.path))
        found.reverse()
        return found

    def _is_kept(self, known: Known, same: dict[bytes, KnownFile]) -> bool:
        try:
            self._lease.keep_tree(known.tree_id, {file.digest for file in same.values()})
        except NotFoundError:
            return False
        return True

    def _still_stored(self, same: dict[bytes, KnownFile]) -> dict[bytes, KnownFile]:
        missing = self._lease.keep_objects({file.digest: file.size for file in same.values() if file.digest})
        return {path: file for path, file in same.items() if file.digest not in missing}

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


def _known(tree: Tree, statuses: dict[bytes, os.stat_result], looked_at_ns: int) -> Known:
    """What can be told from a later look to be still the same."""
    files: dict[bytes, KnownFile] = {}
    for entry in tree:
        status = statuses.get(entry.path)
        if status is not None and is_settled(status, looked_at_ns):
            files[entry.path] = KnownFile(
                status.st_ino,
                status.st_ctime_ns,
                status.st_mtime_ns,
                status.st_size,
                status.st_mode,
                entry.digest,
            )
    return Known(tree.id, files)
