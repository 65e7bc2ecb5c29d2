"""Leases: how content is added, and kept from being collected while it is worked with."""

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from farcall.content.disk import disk_error, finish_file, printable, write_all, write_file
from farcall.content.files import CHUNK_BYTES
from farcall.content.tree import Entry, Tree, shown
from farcall.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from farcall.content.store import Store

# A lease file is lines of a letter and 64 hex digits. A full disk can tear one: readers find the next again.
OBJECT, TREE = "o", "t"

OBJECT_MODE = 0o444


class Readable(Protocol):
    """What content is read from: a file, a response."""

    def read(self, size: int, /) -> bytes: ...


class NewFile:
    """A file of `Lease.new_file`: write to `fd`, then publish."""

    def __init__(self, lease: "Lease", path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.is_published = False
        self._lease = lease

    def publish(self, digest: bytes, size: int) -> None:
        """Make it the object `digest`, which is believed, unless that is in the store already."""
        if not self._lease.keep_objects({digest: size}):
            return
        path = self._lease.store.object_path(digest)
        try:
            os.rename(self.path, path)
        except OSError as error:
            raise disk_error(error, "writing", path) from error
        self.is_published = True


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
        # Where each process and thread writes: in one directory they would wait for each other at each new file.
        self._desks: dict[tuple[int, int], str] = {}
        self._serial = count()

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
                if os.fstat(fd).st_nlink == 0:  # its last holder let go of it just now
                    os.close(fd)
                    raise FileNotFoundError
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
            flock(fd, LOCK_EX | LOCK_NB)  # refused while another process holds it, too
            shutil.rmtree(self.store.root / "incoming" / self.id, ignore_errors=True)
            # A collection that is running must still see what was kept until now: a tree that was added may rely on
            # objects that were garbage when it began. It leaves the file to the next one.
            with self.store.no_collection():
                os.unlink(self.store.root / "leases" / self.id)
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

    def keep_tree(self, tree_id: str, digests: Iterable[bytes] = ()) -> None:
        """Keep a tree with all that it names. Raises `NotFoundError` where it is not in the store (any more).

        `digests` are objects that it is known to name: they need not be looked for when another tree names them, too.
        """
        self._note(TREE, [tree_id])
        if not self.store.tree_path(tree_id).exists():
            raise NotFoundError(f"the content store {self.store.root} has no tree {tree_id}")
        if not self.store.partial_path(tree_id).exists():
            self._present.update(digests)

    def keep_objects(self, sizes: Mapping[bytes, int]) -> set[bytes]:
        """Keep objects, given their sizes; returns those that are not in the store, or of another size there.

        They are kept, too, once somebody adds them.
        """
        wanted = [digest for digest in sizes if digest and digest not in self._present]
        self._note_objects(wanted)
        missing = {digest for digest in wanted if not _is_whole(self.store.object_path(digest), sizes[digest])}
        self._present.update(digest for digest in wanted if digest not in missing)
        return missing

    def look_again(self, digests: Iterable[bytes]) -> None:
        """Objects that were found before may be gone, as those are that `verify` has found damaged: look for them
        again when they are next to be kept."""
        self._present.difference_update(digests)

    def add_bytes(self, data: bytes, *, mode: int = OBJECT_MODE, mtime_ns: int = 0) -> bytes:
        """Add an object; returns its digest. `mode` and `mtime_ns` are its inode's, where the object is new."""
        digest = hashlib.sha256(data).digest() if data else b""
        if self.keep_objects({digest: len(data)}):
            self.write_object(digest, data, mode, mtime_ns)
        return digest

    def add_stream(self, reader: Readable, *, mode: int = OBJECT_MODE, mtime_ns: int = 0) -> tuple[bytes, int]:
        """Add what `reader` yields up to its end; returns digest and size. Memory stays flat."""
        hasher = hashlib.sha256()
        size = 0
        with self.new_file() as new:
            try:
                while chunk := reader.read(CHUNK_BYTES):
                    hasher.update(chunk)
                    write_all(new.fd, chunk)
                    size += len(chunk)
                finish_file(new.fd, mode, mtime_ns)
            except OSError as error:
                raise disk_error(error, "writing", new.path) from error
            digest = hasher.digest() if size else b""
            new.publish(digest, size)
        return digest, size

    def add_file(
        self, path: str | bytes | Path, *, move: bool = False, mode: int = OBJECT_MODE, mtime_ns: int = 0
    ) -> tuple[bytes, int]:
        """Add a regular file's bytes, as `add_files` does; returns digest and size. Raises `NotFoundError`, too."""
        from farcall.content.adding import FileToAdd, add_files

        def inode(_: os.stat_result) -> tuple[int, int]:
            return mode, mtime_ns

        [added] = add_files(self, [FileToAdd(os.fsencode(path), None, inode)], move=move)
        if added is None:
            raise NotFoundError(f"{printable(path)} does not exist")
        return added.digest, added.status.st_size

    def write_object(self, digest: bytes, data: bytes, mode: int, mtime_ns: int) -> None:
        """Put an object into the store that `keep_objects` did not find. `digest` is believed."""
        self._write(self.store.object_path(digest), data, mode, mtime_ns)
        self._present.add(digest)

    @contextmanager
    def new_file(self) -> Generator["NewFile"]:
        """A file to be written, that becomes an object when it is published, and goes at the end if it is not."""
        path = self._temporary()
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, "writing", path) from error
        new = NewFile(self, path, fd)
        try:
            yield new
        finally:
            os.close(fd)
            if not new.is_published:
                os.unlink(path)

    def add_tree(self, tree: Tree | Iterable[Entry], *, partial: bool = False) -> str:
        """Add a tree; returns its id. Raises `NotFoundError` where an object that it names is not in the store.

        A `partial` one is known elsewhere with all its objects, and may lack any here: see `Store.missing`. What
        another one lacks may be what partial trees of the store have elsewhere; then it is partial, too.
        """
        if not isinstance(tree, Tree):
            tree = Tree.of(tree)
        missing = self.keep_objects({entry.digest: entry.size for entry in tree})
        if missing and (partial or self._is_elsewhere(missing)):
            self._note(TREE, [tree.id])
            self._write(os.fspath(self.store.partial_path(tree.id)), b"", OBJECT_MODE, 0)
        elif missing:
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

    def _is_elsewhere(self, digests: set[bytes]) -> bool:
        """Whether all these are objects of partial trees."""
        left = set(digests)
        for tree_id in os.listdir(self.store.root / "partial"):
            with suppress(NotFoundError):
                left -= self.store.tree(tree_id).digests()
        return not left

    def _write(self, path: str, data: bytes, mode: int, mtime_ns: int) -> None:
        made = self._temporary()
        try:
            write_file(made, data, mode, mtime_ns=mtime_ns)
            os.rename(made, path)
        except OSError as error:
            raise disk_error(error, "writing", path) from error

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
        """The path of a file to be made, in this thread's own directory."""
        me = os.getpid(), threading.get_ident()
        desk = self._desks.get(me)
        if desk is None:
            desk = f"{self.scratch}/{secrets.token_hex(6)}"
            try:
                os.mkdir(desk, 0o700)
            except OSError as error:
                raise disk_error(error, "making", desk) from error
            self._desks[me] = desk
        return f"{desk}/{next(self._serial)}"


def _is_whole(path: str, size: int) -> bool:
    if not os.access(path, os.F_OK):  # most are new, and this raises nothing
        return False
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False
