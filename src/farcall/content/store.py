"""The content store of a workspace: objects by hash, trees that name them, records that keep trees alive."""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farcall.content.dead import DeadBytes
from farcall.content.disk import disk_error
from farcall.content.durability import boot_id, read_boot, recover, sync
from farcall.content.records import Record, Records
from farcall.content.tree import DIGEST_BYTES, Entry, Tree
from farcall.errors import CorruptedError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from farcall.content.lease import Lease

_TREES = ("trees", "partial", "profiles", "imports", "indexes", "erofs", "farms", "variants")
_DIRECTORIES = (*_TREES, "records", "leases", "incoming", "downloads", "tiers", "quarantine")


@dataclass(frozen=True)
class StoreStatistics:
    """What is in a store."""

    objects: int
    """Files kept once, by hash."""
    object_bytes: int
    """Bytes on disk that they take."""
    trees: int
    """Manifests."""
    partial_trees: int
    """Those of them that name objects which are elsewhere, and are fetched when they are needed."""
    tree_bytes: int
    """Bytes on disk of manifests, and of what mounts have made of them."""
    records: int
    """What keeps trees alive."""
    leases: int
    """Running builds, ingests and containers that rely on what is here, and those that ended without a word."""
    quarantined: int
    """Objects and trees found damaged and taken out of use."""


class Store:
    """One directory of content, for any number of threads and processes at once.

        objects/ab/<62 hex>     whole files by SHA-256, immutable, complete as soon as they have their name
        trees/<64 hex>          encoded trees; what a tree names was there before it, but for
        partial/<64 hex>        trees whose objects are elsewhere: not all of them are here (yet)
        profiles/<64 hex>       in which order starts have opened a tree's files
        imports/<64 hex>/       which of them the modules of a function are
        records/<kind>/<key>    roots of garbage collection
        leases/<id>             roots, too, for as long as a process holds them
        incoming/<lease>/       work in progress
        downloads/              what arrives from elsewhere, and what is left of it for the next attempt
        indexes/<id>            where the objects of a tree are in `farcall.content.tiers`
        erofs/ farms/ variants/ what `farcall.mounts` makes of trees
        tiers/<id>              what is known to be in a tier
        dead                    about how many bytes nobody keeps any more
        quarantine/             what was found damaged

    The digest of no bytes at all is b"", of which nothing is stored: empty files are made, not kept.
    Reading needs nothing but the store. What adds, or must rely on content staying, does it through a `lease`.
    Every method may raise what `disk_error` says, above all `ResourceExhaustedError` for a full disk.
    """

    def __init__(self, root: Path) -> None:
        """Opens the store at `root`, which is made where it is missing.

        The first to open it after a restart of the machine looks at what had not been synced: see `sync`.
        """
        self.root = root
        self.objects = root / "objects"
        self.record_files = Records(root / "records", root / "incoming")
        self.dead = DeadBytes(root / "dead")
        self._objects = os.fspath(self.objects)
        try:
            known = read_boot(root)
            if known is None or not (root / "imports").exists():  # new, or made by an older farcall
                _make_layout(root)
            if known is None or known.boot_id != boot_id():
                recover(self)
        except OSError as error:
            raise disk_error(error, "opening the content store", root) from error

    def __repr__(self) -> str:
        return f"Store({os.fspath(self.root)!r})"

    def object_path(self, digest: bytes) -> str:
        """Where the object is, or would be. `path_of` as text, for what handles many."""
        name = digest.hex()
        return f"{self._objects}/{name[:2]}/{name[2:]}"

    def path_of(self, digest: bytes) -> Path:
        """Where the object is, or would be: a regular file, never to be written to."""
        if len(digest) != DIGEST_BYTES:
            raise InvalidError(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
        return Path(self.object_path(digest))

    def has(self, digest: bytes) -> bool:
        """Whether the object is here. What no lease and no record keeps may be gone a moment later."""
        return not digest or os.path.exists(self.object_path(digest))

    def read(self, digest: bytes) -> bytes:
        """An object's bytes, checked against the digest. Raises `NotFoundError`, `CorruptedError`."""
        if not digest:
            return b""
        path = self.path_of(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"the content store {self.root} has no object {digest.hex()}") from None
        except OSError as error:
            raise disk_error(error, "reading", path) from error
        if hashlib.sha256(data).digest() != digest:
            raise CorruptedError(
                f"object {digest.hex()} is damaged: its {len(data):,} bytes have another hash. `farcall content "
                "verify` finds all that are, and takes them out of use"
            )
        return data

    def tree(self, tree_id: str) -> Tree:
        """The tree, checked against its id. Raises `NotFoundError`, `CorruptedError`."""
        path = self.tree_path(tree_id)
        try:
            encoded = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"the content store {self.root} has no tree {tree_id}") from None
        except OSError as error:
            raise disk_error(error, "reading", path) from error
        return Tree.decode(encoded, tree_id)

    def tree_path(self, tree_id: str) -> Path:
        """Where the tree's manifest is, or would be."""
        if len(tree_id) != 2 * DIGEST_BYTES or not tree_id.isalnum():
            raise InvalidError(f"{tree_id!r} is no tree id: {2 * DIGEST_BYTES} hex digits")
        return self.root / "trees" / tree_id

    def tree_bytes(self, tree_id: str) -> int:
        """Bytes on disk of a tree's manifest, and of what is one file beside it; not those of its objects."""
        return sum(_allocated(self.root / kind / tree_id) for kind in ("trees", "indexes", "erofs", "profiles"))

    def partial_path(self, tree_id: str) -> Path:
        """The mark that a tree is partial, an empty file: where it is, or would be."""
        return self.root / "partial" / tree_id

    def missing(self, tree_id: str) -> list[Entry]:
        """The files of a tree whose objects are not here, one for each object; none but for a partial tree.

        A partial tree that has all its objects by now is partial no more. Raises as `tree` does.
        """
        if not self.partial_path(tree_id).exists():
            return []
        lost = list(self._lost(self.tree(tree_id)))
        if not lost:
            self.partial_path(tree_id).unlink(missing_ok=True)
        return lost

    def is_partial(self, tree: Tree) -> bool:
        """Whether there are any that `missing` says."""
        path = self.partial_path(tree.id)
        if not path.exists():
            return False
        if any(True for _ in self._lost(tree)):
            return True
        path.unlink(missing_ok=True)
        return False

    def _lost(self, tree: Tree) -> Iterator[Entry]:
        named = {entry.digest: entry for entry in tree if entry.digest}
        return (entry for digest, entry in named.items() if not os.path.exists(self.object_path(digest)))

    def lease(self, purpose: str) -> "Lease":
        """A new lease, to be used as a context manager: what is added, or kept, through it stays until it ends.

        `purpose` ("build", "start") is for people who look into the store.
        """
        from farcall.content.lease import Lease

        return Lease.create(self, purpose)

    def join_lease(self, lease_id: str) -> "Lease":
        """The lease that another process holds, held by this one as well: it ends when the last of them lets go.

        Raises `NotFoundError` when it has ended.
        """
        from farcall.content.lease import Lease

        return Lease.join(self, lease_id)

    def put_record(
        self,
        kind: str,
        key: str,
        *,
        trees: Iterable[str] = (),
        data: dict[str, Any] | None = None,
        pinned: bool = False,
        durable: bool = False,
    ) -> Record:
        """Keep `trees` alive until the record is deleted, replaced, or dropped for lack of room unless it is `pinned`.

        Call it while a lease still keeps the trees, and `sync` when it must survive a power cut: before it where the
        record is `durable`, which then survives by itself. Raises `NotFoundError`
        for a tree that is not here.
        """
        record = Record(kind, key, tuple(trees), data or {}, pinned)
        with self.steady():
            for tree_id in record.trees:
                if not self.tree_path(tree_id).exists():
                    raise NotFoundError(f"{kind} {key} cannot keep the tree {tree_id}, which is not in {self.root}")
            self.record_files.put(record, durable=durable)
        return record

    def record(self, kind: str, key: str) -> Record | None:
        """The record, None where there is none. Asking counts as use. Raises `CorruptedError`."""
        return self.record_files.get(kind, key)

    def delete_record(self, kind: str, key: str) -> bool:
        """Let go of a record's trees; whether there was one."""
        return self.record_files.delete(kind, key)

    def records(self, kind: str | None = None) -> list[Record]:
        """All records, or those of one kind, least recently used first. Raises `CorruptedError`."""
        return self.record_files.all(kind)

    @contextmanager
    def steady(self) -> Generator[None]:
        """While this is held, no garbage collection removes anything. For a few milliseconds at most."""
        with self._locked(LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """While this is held, nobody else relies on anything new: for garbage collection, a few objects at a time."""
        with self._locked(LOCK_EX):
            yield

    @contextmanager
    def collecting(self) -> Generator[None]:
        """While this is held, no other collection begins; it waits for one that is running."""
        with self._locked(LOCK_EX, "gc.lock"):
            yield

    @contextmanager
    def no_collection(self) -> Generator[None]:
        """While this is held, no collection begins. Raises BlockingIOError when one is running."""
        with self._locked(LOCK_SH | LOCK_NB, "gc.lock"):
            yield

    @contextmanager
    def _locked(self, kind: int, name: str = "lock") -> Generator[None]:
        # A descriptor of its own each time: a flock belongs to the opening of the file, and threads would share it.
        fd = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(fd, kind)
            yield
        finally:
            os.close(fd)

    def sync(self) -> None:
        """All that is in the store now survives a power cut when this returns; it may take seconds.

        What is not synced survives, too, as a rule. It is hashed again when the store is first opened after a restart:
        what a power cut has damaged is gone then, with the trees and records that name it, and never believed.
        """
        try:
            sync(self)
        except OSError as error:
            raise disk_error(error, "syncing", self.root) from error

    def statistics(self) -> StoreStatistics:
        """Counts what is there; takes a few microseconds for each object."""
        objects, object_bytes = _count(self.objects)
        trees, tree_bytes = _count(self.root / "trees")
        _, erofs_bytes = _count(self.root / "erofs")
        return StoreStatistics(
            objects,
            object_bytes,
            trees,
            partial_trees=_count(self.root / "partial")[0],
            tree_bytes=tree_bytes + erofs_bytes,
            records=sum(1 for _ in self.record_files.files()),
            leases=_count(self.root / "leases")[0],
            quarantined=_count(self.root / "quarantine")[0],
        )


def _make_layout(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in _DIRECTORIES:
        (root / name).mkdir(mode=0o755, exist_ok=True)
    for number in range(256):
        os.makedirs(root / "objects" / f"{number:02x}", 0o755, exist_ok=True)


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _count(directory: Path) -> tuple[int, int]:
    """How many files there are in a directory and the directories in it, and how many bytes of disk they take."""
    files = size = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner_files, inner_size = _count(Path(entry.path))
                files, size = files + inner_files, size + inner_size
                continue
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            files += 1
    return files, size
