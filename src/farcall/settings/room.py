"""Room on a disk: how a lack of it is told from other failures, and how much there is."""

import errno
import os
from pathlib import Path
from typing import Protocol

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _HasErrno(Protocol):
    @property
    def errno(self) -> int | None: ...


def is_no_room(error: _HasErrno) -> bool:
    """Whether a write failed because of a full disk, a quota or a limit on file sizes."""
    return error.errno in _NO_ROOM


def free_room(path: str | Path) -> str:
    """For messages: "12.3 MiB free" on the file system that holds `path`."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return f"its free space is unknown: {error.strerror}"
    return f"{found.f_bavail * found.f_frsize / 2**20:.1f} MiB free"
