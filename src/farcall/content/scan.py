"""Walking a directory in the order of trees, and what its files carry besides their bytes."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from farcall.content.disk import disk_error, printable
from farcall.content.tree import is_kept_attribute
from farcall.errors import ContentError

_CAPABILITY = b"security.capability"
_ACL_USER, _ACL_GROUP = 0x02, 0x08  # tags of named users and groups in a POSIX ACL
VANISHED = (FileNotFoundError, NotADirectoryError)

Ids = Callable[[int], int]  # from an id of the host to the one a tree has


class Found(NamedTuple):
    """One name of a directory that is walked: relative to it, whole, and what lstat says."""

    path: bytes
    full: bytes
    status: os.stat_result


def walk(
    root: bytes,
    is_pruned: Callable[[bytes], bool] | None = None,
    is_known: Callable[[bytes, os.stat_result], bool] | None = None,
) -> Iterator[Found]:
    """The directory itself with path "", and all that is in it, each directory before what is in it.

    What `is_pruned` is true of, by its path, is left out with all that is in it, unread. What `is_known` is true of is
    not made an item of. What vanishes meanwhile is not there. Raises what `disk_error` says, with the path.
    """
    try:
        pending = [Found(b"", root, os.stat(root))]
        os.scandir(root).close()
    except NotADirectoryError:
        raise ContentError(f"{printable(root)} is no directory") from None
    except OSError as error:
        raise disk_error(error, "reading", root) from error
    while pending:
        found = pending.pop()
        if not stat.S_ISDIR(found.status.st_mode):
            yield found
            continue
        prefix = found.path + b"/" if found.path else b""
        inside: list[Found] = []
        try:
            with os.scandir(found.full) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if is_pruned is not None and is_pruned(path):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except VANISHED:
                        continue
                    if is_known is None or stat.S_ISDIR(status.st_mode) or not is_known(path, status):
                        inside.append(Found(path, entry.path, status))
        except VANISHED:
            continue
        except OSError as error:
            raise disk_error(error, "reading", found.full) from error
        if is_known is None or not is_known(found.path, found.status):
            yield found
        inside.sort(reverse=True)  # paths differ: the last is popped first
        pending += inside


def attributes(full: bytes, uids: Ids, gids: Ids) -> dict[bytes, bytes]:
    """All extended attributes; the ids in ACLs and file capabilities as a tree has them. OSError."""
    found: dict[bytes, bytes] = {}
    for text in os.listxattr(full, follow_symlinks=False):
        name = os.fsencode(text)
        found[name] = as_in_trees(name, os.getxattr(full, text, follow_symlinks=False), uids, gids)
    return found


def kept_attributes(found: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Those of the extended attributes that trees carry, sorted."""
    return tuple(sorted((name, value) for name, value in found.items() if is_kept_attribute(name)))


def as_in_trees(name: bytes, value: bytes, uids: Ids, gids: Ids) -> bytes:
    """An extended attribute's value without ids of the host: file capabilities are those of the tree's own root, and
    the named users and groups of a POSIX ACL go through `uids` and `gids`."""
    if name == _CAPABILITY and len(value) == 24 and value[3] == 3:  # revision 3 of capability.h: names a root user
        return value[:3] + b"\x02" + value[4:20]
    if name.startswith(b"system.posix_acl_") and len(value) >= 4 and len(value) % 8 == 4:
        entries = list(struct.iter_unpack("<HHI", value[4:]))
        maps: dict[int, Ids] = {_ACL_USER: uids, _ACL_GROUP: gids}
        return value[:4] + b"".join(
            struct.pack("<HHI", tag, mode, maps[tag](id_) if tag in maps else id_) for tag, mode, id_ in entries
        )
    return value
