"""Failures of the disk, as errors a user can act on."""

import sqlite3
from pathlib import Path

from farcall.errors import FarcallError, InternalError, ResourceExhaustedError
from farcall.settings.room import free_room, is_no_room

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


def disk_error(error: sqlite3.Error | OSError, path: Path) -> FarcallError:
    """The error to raise for a failed write or read under `path`.

    ResourceExhaustedError when the disk has no room (a full disk, a quota, a file size limit), else InternalError.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if is_no_room(error) if isinstance(error, OSError) else code in _NO_ROOM:
        return ResourceExhaustedError(
            f"no room to write state under {path} ({error}; {free_room(path)}). Free some space there and try again; "
            f"nothing that was acknowledged is lost."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return InternalError(
            f"the state database {path} is damaged ({error}). Restore a copy, or move it away to start afresh."
        )
    return InternalError(f"the state under {path} could not be read or written: {error} ({free_room(path)}).")
