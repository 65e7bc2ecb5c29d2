"""What the operating system says about files, as errors a user can act on; and the calls Python has no name for."""

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from farcall.errors import ContentError, FarcallError, NotFoundError, PermissionDeniedError, ResourceExhaustedError
from farcall.settings.room import free_room, is_no_room


def disk_error(
    error: OSError, doing: str, path: str | bytes | Path, into: str | bytes | Path | None = None
) -> FarcallError:
    """The error to raise when `doing` something ("reading", "writing") to `path` failed; `into` is what was written to
    where that is another file.

    ResourceExhaustedError for a disk without room, PermissionDeniedError, NotFoundError, else ContentError.
    """
    named = printable(path)
    if is_no_room(error):
        full = path if into is None else into
        where = "" if into is None else f" into {printable(into)}"
        return ResourceExhaustedError(
            f"no room while {doing} {named}{where} ({error.strerror}; {free_room(_existing(full))}). Free some space, "
            "for example with `farcall content gc`, and try again; what was there before is unharmed."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(
            f"uid {os.geteuid()} may not go on {doing} {named}: {error.strerror}. Change its mode or owner, or leave "
            "it out"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"{named} does not exist, or vanished while {doing} it")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return ResourceExhaustedError(f"{error.strerror} while {doing} {named}")
    return ContentError(f"{doing} {named} failed: {error.strerror}")


def printable(path: str | bytes | Path) -> str:
    """A path for messages; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def sync_file_system(path: str | Path) -> None:
    """Everything written so far to the file system of `path` is on its disk when this returns (syncfs). OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(fd)


def sync_one(path: str | Path) -> None:
    """A file's bytes, or a directory's names, are on the disk when this returns (fsync). OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: str, data: bytes, mode: int = 0o644, *, mtime_ns: int | None = None, synced: bool = False) -> None:
    """Make the file `path`, which must not exist, in one go; when it is `synced`, its bytes are on the disk after that.
    Leaves nothing behind when it raises (OSError)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, data)
            finish_file(fd, mode, mtime_ns)
            if synced:
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(path)
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """`os.write` until all is written."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def finish_file(fd: int, mode: int, mtime_ns: int | None) -> None:
    """Give an open file its mode, whatever the umask, and its time of modification."""
    os.fchmod(fd, mode)
    if mtime_ns is not None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))


def remove_all(path: Path) -> None:
    """Remove a file, or a directory with all that is in it, whatever their modes; nothing where it does not exist.

    Raises PermissionError at what belongs to somebody else.
    """
    pending = [os.fspath(path)]
    directories: list[str] = []
    while pending:
        name = pending.pop()
        try:
            if not stat.S_ISDIR(os.lstat(name).st_mode):
                os.unlink(name)
                continue
            directories.append(name)
            with suppress(PermissionError):
                os.chmod(name, 0o700)
            with os.scandir(name) as entries:
                pending += [entry.path for entry in entries]
        except FileNotFoundError:
            continue
    for name in reversed(directories):
        with suppress(FileNotFoundError):
            os.rmdir(name)


def _existing(path: str | bytes | Path) -> str:
    found: str = os.path.abspath(os.fsdecode(path))
    while not os.path.exists(found) and found != "/":
        found = os.path.dirname(found)
    return found
