"""An overlay's upper directory, after what ran above a tree has ended, as a new tree."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from farcall.content.disk import disk_error, printable
from farcall.content.intake import Facts, Intake
from farcall.content.lease import Lease
from farcall.content.scan import Found, Ids, attributes, kept_attributes, walk
from farcall.content.tree import Diff, Entry, Tree, default_directory, shown
from farcall.errors import ContentError

OVERFLOW_ID = 65534  # nobody: who owns what no map covers, as the kernel shows it

# How the kernel shows that ids are not mapped at all: this is not within a user namespace.
_ALL_IDS = ["0", "0", "4294967295"]


def ingest_upper(
    lease: Lease,
    upper: Path,
    base: Tree,
    *,
    uid_map: Sequence[tuple[int, int, int]] = (),
    gid_map: Sequence[tuple[int, int, int]] = (),
    clamp_mtime_after: int | None = None,
) -> Tree:
    """The tree that a container saw which ran on `base` with `upper` as its writable layer; it is in the store then.

    `upper` is nobody's any more: its files may be moved out of it. `uid_map` and `gid_map` are those of the container's
    user namespace, as in /proc/PID/uid_map: (first id inside, first id outside, count); empty ones change nothing.
    Times later than `clamp_mtime_after` (nanoseconds) become that. The root directory is that of `base`, but for its
    owner and permissions, which are those of `upper`.

    All that overlayfs puts there is understood: whiteouts (devices 0/0), opaque directories, directories that were
    renamed, and copies without data. This process must be in the user namespace in which the overlay was mounted: that
    decides which attributes are overlayfs's. Raises `ContentError` for devices and for an upper directory that does not
    belong to `base`, and what `add_files` and `Lease.add_tree` raise.
    """
    uids, gids = _ids(uid_map), _ids(gid_map)

    def facts(status: os.stat_result) -> tuple[int, int, int]:
        mtime_ns = status.st_mtime_ns
        if clamp_mtime_after is not None:
            mtime_ns = min(mtime_ns, clamp_mtime_after)
        return uids(status.st_uid), gids(status.st_gid), mtime_ns

    layer = _Upper(base, Intake(lease, facts, move=True), facts)
    for found in walk(os.fsencode(upper)):
        try:
            given = attributes(found.full, uids, gids)
        except OSError as error:
            raise disk_error(error, "reading the attributes of", found.full) from error
        layer.take(found, given)
    merged = layer.merged()
    lease.add_tree(merged)
    return merged


class _Upper:
    """An upper directory while it is read.

    Sources: the kernel's Documentation/filesystems/overlayfs.rst, and its fs/overlayfs/namei.c.
    """

    def __init__(self, base: Tree, intake: Intake, facts: Facts) -> None:
        self._base = base
        self._intake = intake
        self._facts = facts
        self._kind = _attribute_kind()
        self._root = base.entries[0]
        self._removed: set[bytes] = set()
        self._opaque: set[bytes] = set()
        # What each directory lies on, as a path of the base; None for nothing.
        self._below: dict[bytes, bytes | None] = {b"": b""}
        self._renamed: list[tuple[bytes, bytes]] = []  # directories: where they are, where the base has them

    def take(self, found: Found, given: dict[bytes, bytes]) -> None:
        """Take the next name of the walk, with its attributes."""
        status = found.status
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            self._removed.add(found.path)
            return
        if not found.path:
            uid, gid, _ = self._facts(status)
            self._root = msgspec.structs.replace(self._root, mode=status.st_mode, uid=uid, gid=gid)
            if given.get(self._kind + b"opaque") == b"y":
                self._opaque.add(b"")
                self._below[b""] = None
            return
        if stat.S_ISDIR(status.st_mode):
            self._take_directory(found, given)
        if stat.S_ISREG(status.st_mode) and self._kind + b"metacopy" in given:
            digest = self._origin(found, given).digest
            self._intake.take_known(found, digest, kept_attributes(given))
        else:
            self._intake.take(found, kept_attributes(given))

    def merged(self) -> Tree:
        """The tree that shows."""
        diff = Diff([self._root, *self._intake.finish()], frozenset(self._removed), frozenset(self._opaque))
        return self._with_renamed().merge(diff)

    def _take_directory(self, found: Found, given: dict[bytes, bytes]) -> None:
        if given.get(self._kind + b"opaque") == b"y":
            self._opaque.add(found.path)
            self._below[found.path] = None
            return
        below = self._below[found.path] = self._path_below(found.path, given.get(self._kind + b"redirect"))
        if self._kind + b"redirect" in given:
            entry = None if below is None else self._base.get(below)
            if below is None or entry is None or not entry.is_directory:
                raise self._foreign(found, below)
            self._renamed.append((found.path, below))

    def _path_below(self, path: bytes, redirect: bytes | None) -> bytes | None:
        """What lies below a name: `redirect` is a path from the root, or a name in what lies below the directory."""
        if redirect is not None and redirect.startswith(b"/"):
            return redirect[1:]
        parent, _, name = path.rpartition(b"/")
        below = self._below[parent]
        if below is None:
            return None
        name = name if redirect is None else redirect
        return below + b"/" + name if below else name

    def _origin(self, found: Found, given: dict[bytes, bytes]) -> Entry:
        """The file that has the bytes of a copy without data."""
        path = self._path_below(found.path, given.get(self._kind + b"redirect"))
        entry = None if path is None else self._base.get(path)
        if entry is None or not entry.is_regular or entry.size != found.status.st_size:
            raise self._foreign(found, path)
        return entry

    def _with_renamed(self) -> Tree:
        """The base with each renamed directory where it is now, in place of what was there."""
        if not self._renamed:
            return self._base
        entries = {entry.path: entry for entry in self._base}
        for path, below in self._renamed:
            for other in [other for other in entries if other.startswith(path + b"/")]:
                del entries[other]
            for entry in self._base.inside(below):
                moved = path + entry.path[len(below) :]
                entries[moved] = msgspec.structs.replace(entry, path=moved)
            entries[path] = default_directory(path)  # the upper layer has its mode and owner
        return Tree.of_found(entries.values())

    def _foreign(self, found: Found, below: bytes | None) -> ContentError:
        what = "nothing" if below is None else shown(below)
        return ContentError(
            f"{printable(found.full)} is made of {what}, which the tree below it does not have like that"
        )


def _attribute_kind() -> bytes:
    """What overlayfs's attributes begin with: within a user namespace there are no "trusted." ones, and outside of one
    "user." ones are the container's own, which mean nothing."""
    first = Path("/proc/self/uid_map").read_text().split("\n", 1)[0]
    return b"trusted.overlay." if first.split() == _ALL_IDS else b"user.overlay."


def _ids(id_map: Sequence[tuple[int, int, int]]) -> Ids:
    """From ids outside to ids inside."""
    if not id_map:
        return lambda outside: outside

    def inside(outside: int) -> int:
        for first_inside, first_outside, count in id_map:
            if first_outside <= outside < first_outside + count:
                return first_inside + outside - first_outside
        return OVERFLOW_ID

    return inside
