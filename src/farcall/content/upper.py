"""An overlay's upper directory, after what ran above a tree has ended, as a new tree."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from farcall.content.disk import disk_error, printable
from farcall.content.intake import Intake
from farcall.content.lease import Lease
from farcall.content.scan import Ids, attributes, kept_attributes, walk
from farcall.content.tree import Diff, Tree
from farcall.errors import ContentError

OVERFLOW_ID = 65534  # nobody: who owns what no map covers, as the kernel shows it

_OPAQUE = (b"trusted.overlay.opaque", b"user.overlay.opaque")
_FOREIGN = tuple(kind + name for kind in (b"trusted.overlay.", b"user.overlay.") for name in (b"redirect", b"metacopy"))


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
    Times later than `clamp_mtime_after` (nanoseconds) become that. The root directory stays as it is in `base`.

    Whiteouts (devices 0/0) remove, directories with the overlay attribute `opaque` hide what is below; files that name
    others by `redirect` or `metacopy`, which farcall's mounts never make, are refused, and so are devices:
    `ContentError`. Raises what `add_files` and `Lease.add_tree` raise.
    """
    uids, gids = _ids(uid_map), _ids(gid_map)
    removed: set[bytes] = set()
    opaque: set[bytes] = set()

    def facts(status: os.stat_result) -> tuple[int, int, int]:
        mtime_ns = status.st_mtime_ns
        if clamp_mtime_after is not None:
            mtime_ns = min(mtime_ns, clamp_mtime_after)
        return uids(status.st_uid), gids(status.st_gid), mtime_ns

    intake = Intake(lease, facts, move=True)
    for found in walk(os.fsencode(upper)):
        if stat.S_ISCHR(found.status.st_mode) and found.status.st_rdev == 0:
            removed.add(found.path)
            continue
        try:
            given = attributes(found.full, uids, gids)
        except OSError as error:
            raise disk_error(error, "reading the attributes of", found.full) from error
        if any(given.get(name) == b"y" for name in _OPAQUE):
            opaque.add(found.path)
        if foreign := [name for name in _FOREIGN if name in given]:
            raise ContentError(
                f"{printable(found.full)} has the attribute {foreign[0].decode()}: its content is elsewhere. Mount the "
                "overlay with redirect_dir=off,metacopy=off"
            )
        if found.path:
            intake.take(found, kept_attributes(given))
    entries = intake.finish()
    merged = base.merge(Diff(entries, frozenset(removed), frozenset(opaque)))
    lease.add_tree(merged)
    return merged


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
