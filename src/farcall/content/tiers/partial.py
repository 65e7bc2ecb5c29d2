"""A large object that has arrived in part. It can be read from already, and is gone on with after a crash."""

import hashlib
import os
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from farcall.content.disk import disk_error, finish_file
from farcall.content.durability import boot_id
from farcall.content.files import hash_file
from farcall.content.lease import Lease, NewFile
from farcall.content.store import Store
from farcall.content.tiers.claims import claim_range
from farcall.content.tiers.layout import Large, Piece
from farcall.errors import CorruptedError, FarcallError

_BOOT_BYTES = 36  # of the kernel's id of a start of the machine
_HERE = b"\1"


def part_path(store: Store, digest: bytes) -> Path:
    """Where the pieces of a large object are, at their places, until all are: then this file becomes the object."""
    return store.root / "downloads" / f"{digest.hex()}.part"


def arrived_piece(store: Store, large: Large, piece: Piece) -> bytes | None:
    """A piece of a large object of which not all is here; None where that piece is not."""
    try:
        fd = os.open(part_path(store, large.digest), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, piece.size, piece.offset)
    except OSError:
        return None
    finally:
        os.close(fd)
    # It may be written just now: only its hash says that it is whole.
    return data if hashlib.sha256(data).digest() == piece.digest else None


class Partial:
    """The pieces of one large object that are here, for all threads and processes of this machine.

    They are in one file: the object's bytes, holes where a piece is missing; behind them, which start of the machine
    wrote them last, and a byte for each piece that is 1 when it is here. Who wants a piece claims its byte. When all
    are here the file loses its tail and becomes the object. An instance belongs to one thread.
    """

    def __init__(self, store: Store, large: Large, stop: threading.Event) -> None:
        """Opens it, or begins it. Raises what `disk_error` says."""
        self._large = large
        self._stop = stop
        self._path = part_path(store, large.digest)
        self._marks = large.size + _BOOT_BYTES  # where the bytes for the pieces begin
        self._end = self._marks + len(large)
        with _disk_errors("writing", self._path):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with self._claim(large.size, self._marks):
                    self._begin()
            except BaseException:
                os.close(self._fd)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def ensure(self, number: int, get: Callable[[Piece], bytes]) -> None:
        """The piece is here when this returns; `get` is asked for it where it was not. Raises what `get` raises, and
        what `disk_error` says."""
        with _disk_errors("writing", self._path):
            if self._is_here(number):
                return
            with self._claim(self._marks + number, self._marks + number + 1):
                if self._is_here(number):
                    return
                piece = self._large.piece(number)
                data = memoryview(get(piece))
                offset = piece.offset
                while data:
                    written = os.pwrite(self._fd, data, offset)
                    data, offset = data[written:], offset + written
                os.pwrite(self._fd, _HERE, self._marks + number)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of pieces that are here. Raises what `disk_error` says."""
        with _disk_errors("reading", self._path):
            return os.pread(self._fd, min(size, self._large.size - offset), offset)

    def publish(self, lease: Lease, mode: int, mtime_ns: int) -> bool:
        """Make it the object, if all pieces are here; whether it was made the object now.

        Raises `CorruptedError` where their hash is not the object's: then it begins anew. Else what `disk_error` says.
        """
        with _disk_errors("writing", self._path):
            if not self._is_whole():  # seen without a claim, for which all pieces on their way would be waited for
                return False
        with _disk_errors("writing", self._path), self._claim(self._large.size, self._end):
            if not self._is_whole():
                return False
            if hash_file(self._fd, self._large.size) != self._large.digest:
                os.unlink(self._path)
                os.ftruncate(self._fd, 0)  # others that have it open see that it is no more
                raise CorruptedError(
                    f"object {self._large.digest.hex()} arrived as another one: its index names pieces of other "
                    "content. Build the image again, and push it: that makes a new index"
                )
            os.ftruncate(self._fd, self._large.size)
            finish_file(self._fd, mode, mtime_ns)
            new = NewFile(lease, str(self._path), self._fd)
            new.publish(self._large.digest, self._large.size)
            if not new.is_published:
                os.unlink(self._path)
            return new.is_published

    def discard(self) -> None:
        """The object is in the store: what is here of it is for nothing. Raises what `disk_error` says."""
        with _disk_errors("removing", self._path), self._claim(self._large.size, self._end):
            if self._is_named():
                os.unlink(self._path)

    def _begin(self) -> None:
        """Make the file as long as it must be; believe nothing that was written before a crash of the machine."""
        boot = boot_id().encode()
        status = os.fstat(self._fd)
        if status.st_size == self._end:
            if os.pread(self._fd, _BOOT_BYTES, self._large.size) == boot:
                return
            self._look()
        elif status.st_size == self._large.size:
            if not self._is_named():
                return  # published between our opening and our claim
            os.ftruncate(self._fd, self._end)  # a process was killed just before it could
            self._look()
        else:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._end)
        os.pwrite(self._fd, boot, self._large.size)

    def _is_named(self) -> bool:
        """Whether the file of that name is still this one."""
        try:
            return os.fstat(self._fd).st_ino == os.stat(self._path).st_ino
        except FileNotFoundError:
            return False

    def _look(self) -> None:
        """Find out which pieces are here by their hashes."""
        for number in range(len(self._large)):
            piece = self._large.piece(number)
            data = os.pread(self._fd, piece.size, piece.offset)
            is_right = hashlib.sha256(data).digest() == piece.digest
            os.pwrite(self._fd, _HERE if is_right else b"\0", self._marks + number)

    def _is_whole(self) -> bool:
        """Whether all pieces are here, and nobody has published it: then it would have no marks."""
        return os.pread(self._fd, len(self._large), self._marks) == _HERE * len(self._large)

    def _is_here(self, number: int) -> bool:
        mark = os.pread(self._fd, 1, self._marks + number)
        if not mark and os.fstat(self._fd).st_size != self._large.size:
            raise CorruptedError(f"object {self._large.digest.hex()} was found damaged while it arrived. Try again")
        return mark in (_HERE, b"")  # without its tail it is the object

    def _claim(self, start: int, end: int) -> AbstractContextManager[None]:
        return claim_range(self._fd, start, end - start, self._stop, str(self._path))


@contextmanager
def _disk_errors(doing: str, path: Path) -> Generator[None]:
    try:
        yield
    except FarcallError:  # some of which are OSErrors, too
        raise
    except OSError as error:
        raise disk_error(error, doing, path) from error
