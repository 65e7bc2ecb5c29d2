"""Failures of the disk, as errors a user can act on."""

import errno
import os
import sqlite3
from pathlib import Path

from farcall.errors import FarcallError, InternalError, ResourceExhaustedError

# What SQLite reports when the filesystem has no room. Only ENOSPC becomes SQLITE_FULL; a quota, a file size limit and
# a -shm or sync that finds no room come as these extended I/O errors.
_NO_ROOM = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    }
)
_NO_ROOM_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_error(error: sqlite3.Error | OSError, path: Path) -> FarcallError:
    """The error to raise for a failed write or read under `path`.

    ResourceExhaustedError when the disk has no room (a full disk, a quota, a file size limit), else InternalError.
    """
    if isinstance(error, OSError):
        no_room = error.errno in _NO_ROOM_ERRNO
    else:
        no_room = getattr(error, "sqlite_errorcode", None) in _NO_ROOM
    if no_room:
        return ResourceExhaustedError(
            f"no room to write state under {path} ({error}; {_free(path)}). Free some space there and try again; "
            f"nothing that was acknowledged is lost."
        )
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return InternalError(
            f"the state database {path} is damaged ({error}). Restore a copy, or move it away to start afresh."
        )
    return InternalError(f"the state under {path} could not be read or written: {error} ({_free(path)}).")


def _free(path: Path) -> str:
    try:
        found = os.statvfs(path)
    except OSError as error:
        return f"its free space is unknown: {error.strerror}"
    return f"{found.f_bavail * found.f_frsize / 2**20:.1f} MiB free"
