"""Leases: how content is added, and kept from being collected while it is worked with."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from errno import EXDEV
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from farcall.content.disk import disk_error, finish_file, write_all, write_file
from farcall.content.files import ATTEMPTS, CHUNK_BYTES, changing, copy_file, has_changed, hash_file, open_file
from farcall.content.tree import Entry, Tree, shown
from farcall.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from farcall.content.store import Store

# A lease file is lines of a letter and 64 hex digits. A full disk can tear one: readers find the next again.
OBJECT, TREE = "o", "t"

SMALL_FILE_BYTES = 128 * 1024  # up to this a file is read in one go, and written only if it is new
OBJECT_MODE = 0o444


class Readable(Protocol):
    """What content is read from: a file, a response."""

    def read(self, size: int, /) -> bytes: ...


class Lease:
    """What one build, ingest or container relies on: it stays in the store until the lease ends.

    A lease ends at the end of its `with` block, and when the last process that holds it ends, in whatever way. Its
    methods may be used by several threads, and by forked children. The order is what makes it safe: what is relied on
    is first written into the lease, while no collection runs, and only then looked for.

    Errors of all methods: `ResourceExhaustedError` for a full disk, else what `disk_error` says.
    """

    def __init__(self, store: "Store", lease_id: str, fd: int) -> None:
        self.store = store
        self.id = lease_id
        self._fd = fd
        self._noted: set[bytes] = set()  # objects that the file says are kept
        self._present: set[bytes] = set()  # those of them that were found, or added
        self._scratch: Path | None = None

    @classmethod
    def create(cls, store: "Store", purpose: str) -> "Lease":
        """See `Store.lease`."""
        if not purpose.isidentifier():
            raise InvalidError(f"{purpose!r} cannot be a lease's purpose: letters, digits and '_'")
        lease_id = f"{purpose}-{os.getpid()}-{secrets.token_hex(4)}"
        path = store.root / "leases" / lease_id
        try:
            with store.steady():  # a collection would take a lease that nobody holds yet for one whose holder died
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                flock(fd, LOCK_SH)
        except OSError as error:
            raise disk_error(error, "making a lease in", store.root) from error
        return cls(store, lease_id, fd)

    @classmethod
    def join(cls, store: "Store", lease_id: str) -> "Lease":
        """See `Store.join_lease`."""
        path = store.root / "leases" / lease_id
        try:
            with store.steady():
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                flock(fd, LOCK_SH)
        except FileNotFoundError:
            raise NotFoundError(f"the lease {lease_id} of {store.root} has ended") from None
        except OSError as error:
            raise disk_error(error, "opening", path) from error
        return cls(store, lease_id, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Lease({self.id!r})"

    def close(self) -> None:
        """End it. Idempotent. What nothing else keeps goes at the next collection."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            with self.store.steady():
                flock(fd, LOCK_EX | LOCK_NB)  # refused while another process holds it, too
                os.unlink(self.store.root / "leases" / self.id)
                shutil.rmtree(self.store.root / "incoming" / self.id, ignore_errors=True)
        except OSError:
            pass  # a collection sweeps it up
        finally:
            os.close(fd)

    @property
    def scratch(self) -> Path:
        """A directory for work in progress, on the store's file system. It goes when the lease ends."""
        if self._scratch is None:
            path = self.store.root / "incoming" / self.id
            try:
                path.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise disk_error(error, "making", path) from error
            self._scratch = path
        return self._scratch

    def keep_tree(self, tree_id: str) -> None:
        """Keep a tree with all that it names. Raises `NotFoundError` where it is not in the store (any more)."""
        self._note(TREE, [tree_id])
        if not self.store.tree_path(tree_id).exists():
            raise NotFoundError(f"the content store {self.store.root} has no tree {tree_id}")

    def keep_objects(self, digests: Iterable[bytes]) -> set[bytes]:
        """Keep objects; returns those that are not in the store. They are kept, too, once somebody adds them."""
        wanted = set(digests) - self._present
        self._note_objects(wanted)
        missing = {digest for digest in wanted if not self.store.has(digest)}
        self._present |= wanted - missing
        return missing

    def add_bytes(self, data: bytes, *, mode: int = OBJECT_MODE, mtime_ns: int = 0) -> bytes:
        """Add an object; returns its digest. `mode` and `mtime_ns` are its inode's, where the object is new."""
        if not data:
            return b""
        digest = hashlib.sha256(data).digest()
        path = self.store.object_path(digest)
        if not self._has(digest, path, len(data)):
            self._write(path, data, mode, mtime_ns)
        return digest

    def add_stream(self, reader: Readable, *, mode: int = OBJECT_MODE, mtime_ns: int = 0) -> tuple[bytes, int]:
        """Add what `reader` yields up to its end; returns digest and size. Memory stays flat."""
        made = self._temporary()
        hasher = hashlib.sha256()
        size = 0
        try:
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                while chunk := reader.read(CHUNK_BYTES):
                    hasher.update(chunk)
                    write_all(fd, chunk)
                    size += len(chunk)
                finish_file(fd, mode, mtime_ns)
            finally:
                os.close(fd)
            digest = hasher.digest() if size else b""
            self._publish(made, digest, size)
        except BaseException as error:
            _discard(made)
            if isinstance(error, OSError):
                raise disk_error(error, "writing", made) from error
            raise
        return digest, size

    def add_file(
        self, path: str | bytes | Path, *, move: bool = False, mode: int = OBJECT_MODE, mtime_ns: int = 0
    ) -> tuple[bytes, int]:
        """Add a regular file's bytes; returns digest and size.

        A file that is written to while it is read is read again, up to `ATTEMPTS` times, then `ContentError`. With
        `move` the file is nobody's any more and may become the object itself, where that is possible without a copy.
        Raises `ContentError` for what is no regular file.
        """
        path = os.fspath(path)
        fd = open_file(path)
        try:
            for _ in range(ATTEMPTS):
                before = os.fstat(fd)
                if move:
                    return self._add_by_moving(path, fd, before, mode, mtime_ns)
                digest = self._add_open_file(path, fd, before, mode, mtime_ns)
                if digest is not None:
                    return digest, before.st_size
            raise changing(path)
        finally:
            os.close(fd)

    def add_tree(self, tree: Tree | Iterable[Entry]) -> str:
        """Add a tree; returns its id. Raises `NotFoundError` where an object that it names is not in the store."""
        if not isinstance(tree, Tree):
            tree = Tree.of(tree)
        if missing := self.keep_objects(tree.digests()):
            entry = next(entry for entry in tree if entry.digest in missing)
            raise NotFoundError(
                f"{len(missing)} objects of a tree are not in the content store {self.store.root}, "
                f"among them {entry.digest.hex()} at {shown(entry.path)}"
            )
        path = os.fspath(self.store.tree_path(tree.id))
        self._note(TREE, [tree.id])
        if not _is_whole(path, len(tree.encoded)):
            self._write(path, tree.encoded, OBJECT_MODE, 0)
        return tree.id

    def _add_open_file(
        self, path: str | bytes, fd: int, before: os.stat_result, mode: int, mtime_ns: int
    ) -> bytes | None:
        """The digest; None where the file changed meanwhile."""
        size = before.st_size
        if size <= SMALL_FILE_BYTES:
            try:
                data = os.pread(fd, size + 1, 0)
                after = os.fstat(fd)
            except OSError as error:
                raise disk_error(error, "reading", path) from error
            if len(data) != size or has_changed(before, after):
                return None
            return self.add_bytes(data, mode=mode, mtime_ns=mtime_ns)
        made = self._temporary()
        try:
            target = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                digest = copy_file(fd, target, size)
                if has_changed(before, os.fstat(fd)):
                    _discard(made)
                    return None
                finish_file(target, mode, mtime_ns)
            finally:
                os.close(target)
            self._publish(made, digest, size)
        except BaseException as error:
            _discard(made)
            if isinstance(error, OSError):
                raise disk_error(error, "copying", path) from error
            raise
        return digest

    def _add_by_moving(
        self, path: str | bytes, fd: int, before: os.stat_result, mode: int, mtime_ns: int
    ) -> tuple[bytes, int]:
        try:
            if before.st_size == 0:
                return b"", 0
            digest = hash_file(fd, before.st_size)
            if self._has(digest, self.store.object_path(digest), before.st_size):
                return digest, before.st_size
            if before.st_uid != os.geteuid() or before.st_gid != os.getegid():
                os.fchown(fd, os.geteuid(), os.getegid())
            for name in os.listxattr(fd):
                os.removexattr(fd, name)
            finish_file(fd, mode, mtime_ns)
            try:
                os.rename(path, self.store.object_path(digest))
            except OSError as error:
                if error.errno != EXDEV:
                    raise
                return self.add_file(path, mode=mode, mtime_ns=mtime_ns)
        except OSError as error:
            raise disk_error(error, "moving", path) from error
        return digest, before.st_size

    def _publish(self, made: str, digest: bytes, size: int) -> None:
        path = self.store.object_path(digest)
        if not digest or self._has(digest, path, size):
            _discard(made)
        else:
            os.rename(made, path)

    def _write(self, path: str, data: bytes, mode: int, mtime_ns: int) -> None:
        made = self._temporary()
        try:
            write_file(made, data, mode, mtime_ns=mtime_ns)
            os.rename(made, path)
        except OSError as error:
            raise disk_error(error, "writing", path) from error

    def _has(self, digest: bytes, path: str, size: int) -> bool:
        """Keep the object; whether it is here, whole as far as its size tells. If not, the caller adds it."""
        if digest not in self._noted:
            self._note_objects([digest])
        self._present.add(digest)
        return _is_whole(path, size)

    def _note_objects(self, digests: Iterable[bytes]) -> None:
        new = [digest for digest in digests if digest not in self._noted]
        self._note(OBJECT, [digest.hex() for digest in new])
        self._noted.update(new)

    def _note(self, kind: str, names: list[str]) -> None:
        """Write into the lease that these are relied on, while no collection runs: the next one sees it."""
        if self._fd < 0:
            raise InvalidError(f"the lease {self.id} has ended")
        if not names:
            return
        lines = "".join(f"{kind}{name}\n" for name in names).encode()
        try:
            with self.store.steady():
                write_all(self._fd, lines)
        except OSError as error:
            raise disk_error(error, "writing", self.store.root / "leases" / self.id) from error

    def _temporary(self) -> str:
        return f"{self.scratch}/{secrets.token_hex(8)}"


def _is_whole(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
