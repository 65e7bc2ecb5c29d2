"""Adding many files: read, hashed and written by a few threads, whose system calls and hashing run side by side."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from farcall.content.disk import disk_error, finish_file
from farcall.content.files import ATTEMPTS, changing, copy_file, has_changed, hash_file, open_file
from farcall.content.lease import OBJECT_MODE, Lease
from farcall.content.threads import side_by_side
from farcall.content.tree import Entry
from farcall.errors import NotFoundError

SMALL_FILE_BYTES = 128 * 1024  # up to this a file is read in one go, and written only if its content is new
CHUNK_FILES = 32  # small files that a thread takes at a time: they are written into the lease together


class FileToAdd(NamedTuple):
    """A regular file, and what the object's own inode takes from it if its content is new (see `object_inode`)."""

    path: bytes
    size: int  # as last seen: only for sharing out the work
    inode: Callable[[os.stat_result], tuple[int, int]]


class Added(NamedTuple):
    """The digest, and the file's status while its bytes were these."""

    digest: bytes
    status: os.stat_result


def object_inode(mode: int, uid: int, gid: int, mtime_ns: int) -> tuple[int, int]:
    """(mode, time) of the inode of an object that is new, where an entry of a tree has these.

    An object may have an entry's own mode and time when the entry is root's, everybody may read it and it has no
    set-id bits: directories of hard links, which mounts fall back on, then need no second copy of the file.
    """
    if uid == gid == 0 and mode & 0o7444 == 0o444:
        return stat.S_IMODE(mode), mtime_ns
    return OBJECT_MODE, 0


def entry_inode(entry: Entry) -> tuple[int, int]:
    """`object_inode` of an entry."""
    return object_inode(entry.mode, entry.uid, entry.gid, entry.mtime_ns)


def add_files(lease: Lease, files: Sequence[FileToAdd], *, move: bool = False) -> list[Added | None]:
    """Add regular files; for each what was added, None for one that has vanished.

    A file that is written to while it is read is read again, up to `ATTEMPTS` times, then `ContentError`. With `move`
    the files are nobody's any more, and become objects themselves where that is possible. Raises `ContentError` for
    what is no regular file (any more) and what `disk_error` says, for the first file that fails.
    """
    found: list[Added | None] = [None] * len(files)
    large = [[place] for place, file in enumerate(files) if file.size > SMALL_FILE_BYTES]
    small = [place for place, file in enumerate(files) if file.size <= SMALL_FILE_BYTES]
    chunks = large + [small[start : start + CHUNK_FILES] for start in range(0, len(small), CHUNK_FILES)]
    side_by_side(lambda chunk: _add_chunk(lease, [(place, files[place]) for place in chunk], move, found), chunks)
    return found


def _add_chunk(lease: Lease, files: list[tuple[int, FileToAdd]], move: bool, found: list[Added | None]) -> None:
    """Add files and put what was added into `found`. Small ones are looked for all together."""
    read: dict[bytes, tuple[FileToAdd, os.stat_result, bytes]] = {}
    for place, file in files:
        try:
            fd, before = open_file(file.path)
        except NotFoundError:
            continue
        try:
            for _ in range(ATTEMPTS):
                if before.st_size == 0:
                    found[place] = Added(b"", before)
                elif move:
                    found[place] = Added(_move(lease, file, fd, before), before)
                elif before.st_size > SMALL_FILE_BYTES:
                    digest = _copy(lease, file.path, fd, before, file.inode(before))
                    found[place] = None if digest is None else Added(digest, before)
                elif (data := _read(file, fd, before)) is not None:
                    digest = hashlib.sha256(data).digest()
                    read[digest] = file, before, data
                    found[place] = Added(digest, before)
                if found[place] is not None:
                    break
                before = os.fstat(fd)
            else:
                raise changing(file.path)
        finally:
            os.close(fd)
    for digest in lease.keep_objects({digest: len(data) for digest, (_, _, data) in read.items()}):
        file, status, data = read[digest]
        lease.write_object(digest, data, *file.inode(status))


def _read(file: FileToAdd, fd: int, before: os.stat_result) -> bytes | None:
    """The bytes of a small file; None where it changed meanwhile."""
    try:
        data = os.pread(fd, before.st_size + 1, 0)
        after = os.fstat(fd)
    except OSError as error:
        raise disk_error(error, "reading", file.path) from error
    return None if len(data) != before.st_size or has_changed(before, after) else data


def _copy(lease: Lease, path: bytes, fd: int, before: os.stat_result, inode: tuple[int, int]) -> bytes | None:
    """Hash and copy a large file; None where it changed meanwhile."""
    with lease.new_file() as new:
        try:
            digest = copy_file(fd, new.fd, before.st_size)
            if has_changed(before, os.fstat(fd)):
                return None
            finish_file(new.fd, *inode)
        except OSError as error:
            raise disk_error(error, "copying", path, new.path) from error
        new.publish(digest, before.st_size)
    return digest


def _move(lease: Lease, file: FileToAdd, fd: int, before: os.stat_result) -> bytes:
    """Make the file itself the object, unless there is one already."""
    inode = file.inode(before)
    try:
        digest = hash_file(fd, before.st_size)
        if not lease.keep_objects({digest: before.st_size}):
            return digest
        if before.st_uid != os.geteuid() or before.st_gid != os.getegid():
            os.fchown(fd, os.geteuid(), os.getegid())
        for name in os.listxattr(fd):
            os.removexattr(fd, name)
        finish_file(fd, *inode)
        os.rename(file.path, lease.store.object_path(digest))
    except OSError as error:
        if error.errno == errno.EXDEV:
            copied = _copy(lease, file.path, fd, os.fstat(fd), inode)
            if copied is None:
                raise changing(file.path) from None
            return copied
        raise disk_error(error, "moving", file.path) from error
    return digest
