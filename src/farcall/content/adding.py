"""Adding many files: large ones by a few threads, whose reading, hashing and writing run side by side.

Small ones are for one of these threads: between system calls of a few microseconds, two would wait for the interpreter
longer than they gain.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from farcall.content.disk import disk_error, finish_file
from farcall.content.files import ATTEMPTS, OPEN_FLAGS, changing, copy_file, has_changed, hash_file, open_file
from farcall.content.lease import OBJECT_MODE, Lease
from farcall.content.threads import side_by_side
from farcall.content.tree import Entry
from farcall.errors import NotFoundError

SMALL_FILE_BYTES = 128 * 1024  # up to this a file is read in one go, and written only if its content is new
CHUNK_FILES = 128  # small files that are read together, and then written into the lease together


class FileToAdd(NamedTuple):
    """A regular file, and what the object's own inode takes from it if its content is new (see `object_inode`)."""

    path: bytes
    seen: os.stat_result | None  # when it was found
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
    small: list[int] = []
    large: list[list[int]] = []
    for place, file in enumerate(files):
        if file.seen is not None and file.seen.st_size > SMALL_FILE_BYTES:
            large.append([place])
        else:
            small.append(place)

    def add(places: list[int]) -> None:
        for start in range(0, len(places), CHUNK_FILES):
            chunk = [(place, files[place]) for place in places[start : start + CHUNK_FILES]]
            _add_chunk(lease, chunk, move, found)

    side_by_side(add, [small, *large])
    return found


def _add_chunk(lease: Lease, files: list[tuple[int, FileToAdd]], move: bool, found: list[Added | None]) -> None:
    """Add files and put what was added into `found`. Small ones are looked for all together."""
    read: dict[bytes, tuple[FileToAdd, os.stat_result, bytes]] = {}
    for place, file in files:
        if not move and (one := _read_at_once(file)) is not None:
            status, data = one
            digest = hashlib.sha256(data).digest()
            read[digest] = file, status, data
            found[place] = Added(digest, status)
            continue
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


def _read_at_once(file: FileToAdd) -> tuple[os.stat_result, bytes] | None:
    """The status and bytes of a small file that is as it was when it was found; None where it takes a closer look."""
    seen = file.seen
    if seen is None or not 0 < seen.st_size <= SMALL_FILE_BYTES:
        return None
    try:
        fd = os.open(file.path, OPEN_FLAGS)
        try:
            data = os.pread(fd, seen.st_size + 1, 0)
            after = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError:
        return None
    return None if len(data) != after.st_size or has_changed(seen, after) else (after, data)


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
