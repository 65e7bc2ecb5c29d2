"""Garbage collection: what no lease and no record keeps goes, while everybody else goes on."""

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from farcall.content.disk import disk_error, remove_all
from farcall.content.records import Record
from farcall.content.roots import Roots, abandoned, remove_dead_leases
from farcall.content.store import Store
from farcall.errors import NotFoundError

_Name = TypeVar("_Name")

BATCH = 256  # files removed while the store is held exclusively, a few milliseconds


@dataclass
class Collected:
    """What a collection did."""

    records: int = 0
    """Records dropped for lack of room."""
    trees: int = 0
    """Trees removed."""
    objects: int = 0
    """Objects, and copies of them that mounts had made, removed."""
    freed_bytes: int = 0
    """Bytes on disk that they took."""
    kept_bytes: int = 0
    """Bytes of all files that stay."""
    stuck: int = 0
    """Directories that this user may not remove: those of containers' users. A collection as root of their user
    namespace removes them."""


def collect(store: Store, keep_bytes: int | None = None) -> Collected:
    """Remove what nothing keeps. Safe at any time: see docs/guide/content-store.md for why.

    With `keep_bytes`, records are first dropped, least recently used first, until the files of those that are left take
    no more than that; never pinned ones, nor those whose trees a lease keeps. One collection runs at a time, a second
    one waits. Raises `CorruptedError`, and removes nothing, where a record or tree cannot be read: nobody knows then
    what must stay (`farcall content verify` clears that up); else what `disk_error` says.
    """
    try:
        with store.collecting():
            dead = store.dead.get()
            collected = _Collection(store).run(keep_bytes)
            store.dead.subtract(dead)
            return collected
    except OSError as error:
        raise disk_error(error, "collecting", store.root) from error


class _Collection:
    """One run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._roots = Roots(store)
        self._result = Collected()
        self._trash: list[Path] = []

    def run(self, keep_bytes: int | None) -> Collected:
        with self._store.exclusive():
            remove_dead_leases(self._store)
            self._trash += abandoned(self._store)
        self._empty_trash()
        self._roots.read_leases()
        for record in self._superfluous(keep_bytes) if keep_bytes is not None else ():
            self._drop(record)
        # The slow reading while nobody waits; what is new by the time it counts is little.
        self._roots.refresh()
        # A tree goes before its objects. So whoever says that he keeps a tree, and then finds it, finds them, too.
        self._sweep(self._trees(), self._remove_tree)
        self._empty_trash()  # which lets go of the objects and variants that directories of links still have
        self._sweep(self._objects(), self._remove_object)
        self._sweep(self._variants(), self._remove_variant)
        self._trash += (self._store.root / "quarantine").iterdir()
        self._empty_trash()
        self._result.kept_bytes = self._store.statistics().object_bytes
        return self._result

    def _superfluous(self, keep_bytes: int) -> list[Record]:
        """The records that do not fit, counted from the one that was used last."""
        sizes: dict[bytes, int] = {}
        for tree_id in self._roots.trees:
            sizes |= self._sizes(tree_id)
        total = sum(sizes.values())
        found: list[Record] = []
        for record in sorted(self._store.records(), key=lambda record: (record.pinned, record.used), reverse=True):
            needs: dict[bytes, int] = {}
            for tree_id in record.trees:
                needs |= self._sizes(tree_id)
            size = sum(size for digest, size in needs.items() if digest not in sizes)
            if size and not record.pinned and (found or total + size > keep_bytes):
                found.append(record)
            else:
                sizes |= needs
                total += size
        return found

    def _sizes(self, tree_id: str) -> dict[bytes, int]:
        try:
            return {entry.digest: entry.size for entry in self._store.tree(tree_id) if entry.digest}
        except NotFoundError:
            return {}

    def _drop(self, record: Record) -> None:
        with self._store.exclusive():
            again = self._store.record_files.at(self._store.record_files.path(record.kind, record.key))
            if again == record:  # neither replaced nor used since
                self._store.delete_record(record.kind, record.key)
                self._result.records += 1

    def _sweep(self, names: Iterator[_Name], remove: Callable[[_Name], None]) -> None:
        """Remove what is not kept, by batches, each after a look at what is kept by now."""
        while batch := list(islice(names, BATCH)):
            with self._store.exclusive():
                self._roots.refresh()
                for name in batch:
                    remove(name)

    def _trees(self) -> Iterator[str]:
        found: set[str] = set()
        for kind in ("trees", "partial", "profiles", "imports", "indexes", "erofs", "farms"):
            found.update(os.listdir(self._store.root / kind))
        return iter(sorted(found - self._roots.trees))

    def _remove_tree(self, tree_id: str) -> None:
        if tree_id in self._roots.trees:
            return
        if self._unlink(self._store.root / "trees" / tree_id):
            self._result.trees += 1
        for kind in ("partial", "profiles", "indexes", "erofs"):
            self._unlink(self._store.root / kind / tree_id)
        for kind in ("farms", "imports"):
            folder = self._store.root / kind / tree_id
            if folder.exists():
                trash = self._store.root / "incoming" / f"gc-{secrets.token_hex(8)}"
                os.rename(folder, trash)
                self._trash.append(trash)

    def _objects(self) -> Iterator[bytes]:
        for prefix in os.listdir(self._store.objects):
            for rest in os.listdir(self._store.objects / prefix):
                try:
                    digest = bytes.fromhex(prefix + rest)
                except ValueError:
                    continue  # none of ours
                if digest not in self._roots.objects:
                    yield digest

    def _remove_object(self, digest: bytes) -> None:
        if digest not in self._roots.objects and self._unlink(self._store.path_of(digest)):
            self._result.objects += 1

    def _variants(self) -> Iterator[Path]:
        return (self._store.root / "variants").iterdir()

    def _remove_variant(self, path: Path) -> None:
        try:
            is_linked = path.stat().st_nlink > 1
        except FileNotFoundError:
            return
        if not is_linked and self._unlink(path):
            self._result.objects += 1

    def _unlink(self, path: Path) -> bool:
        try:
            status = path.lstat()
            path.unlink()
        except FileNotFoundError:
            return False
        if status.st_nlink == 1:
            self._result.freed_bytes += status.st_blocks * 512
        return True

    def _empty_trash(self) -> None:
        for path in self._trash:
            try:
                remove_all(path)
            except PermissionError:
                self._result.stuck += 1
        self._trash.clear()
