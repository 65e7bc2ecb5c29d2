"""Volumes: trees with a name that change, from one whole version to the next."""

import secrets
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from farcall.content.lease import Lease
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tree import Entry, Tree, default_directory, parents, shown
from farcall.errors import AlreadyExistsError, FarcallError, FileExistsError, InvalidError, NotFoundError

_KIND = "volume"


class Volume(NamedTuple):
    """A volume as it is now. Times are seconds since the epoch."""

    name: str
    volume_id: str  # "vo-..."
    tree_id: str  # the version
    created_at: float
    updated_at: float
    is_ephemeral: bool = False  # its maker deletes it, or whoever finds that there is none any more


class Changes(NamedTuple):
    """What one writer changes: files that go, then entries that are put in, with all directories that lead to them.

    With `only_new`, nothing is changed where a file is in the place of one that is put in.
    """

    entries: tuple[Entry, ...] = ()
    removed: frozenset[bytes] = frozenset()
    only_new: bool = False


class Volumes:
    """The volumes of one store, for one process and any number of threads.

    A version is a tree, and which one is current stands in one record: a change is whole once that is replaced, and
    has not happened before. Records are pinned, so that no collection takes a current version.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changing = threading.Lock()

    def all(self) -> list[Volume]:
        """All volumes, oldest first."""
        return sorted(map(_volume, self._store.records(_KIND)), key=lambda volume: volume.created_at)

    def get(self, name: str) -> Volume:
        """The volume of that name. Raises NotFoundError with the nearest names."""
        record = self._store.record(_KIND, name)
        if record is None:
            import difflib

            near = difflib.get_close_matches(name, [volume.name for volume in self.all()], 3, 0.6)
            raise NotFoundError(
                f"there is no volume {name!r}"
                + (f"; did you mean {', '.join(near)}?" if near else ".")
                + f" Create it with `farcall volume create {name}`, or name it with create_if_missing=True"
            )
        return _volume(record)

    def find(self, volume_id: str) -> Volume:
        """The volume with that id. Raises NotFoundError."""
        for volume in self.all():
            if volume.volume_id == volume_id:
                return volume
        raise NotFoundError(f"there is no volume {volume_id}; `farcall volume list` shows those there are")

    def create(self, name: str, *, allow_existing: bool = False, ephemeral: bool = False) -> Volume:
        """Makes an empty volume. Raises AlreadyExistsError where there is one of that name, unless that is allowed."""
        with self._changing, self._store.lease("volume") as lease:
            record = self._store.record(_KIND, name)
            if record is not None:
                if allow_existing:
                    return _volume(record)
                raise AlreadyExistsError(f"there is a volume {name!r} already")
            now = time.time()
            volume_id = f"vo-{secrets.token_hex(11)}"
            return self._put(Volume(name, volume_id, lease.add_tree(Tree.of(())), now, now, ephemeral))

    def delete(self, name: str) -> None:
        """Deletes a volume, for good. Containers that have it mounted keep what they see. Raises NotFoundError."""
        with self._changing:
            volume = self.get(name)
            self._store.delete_record(_KIND, name)
            with suppress(FarcallError):  # one that cannot be read can be deleted all the same
                self._let_go(volume.tree_id, self._store.tree(volume.tree_id))

    def delete_ephemeral(self) -> None:
        """Deletes the ephemeral volumes of an earlier process."""
        for volume in self.all():
            if volume.is_ephemeral:
                self.delete(volume.name)

    def rename(self, old: str, new: str) -> Volume:
        """Gives a volume another name. Raises NotFoundError, and AlreadyExistsError where that name is taken."""
        with self._changing:
            volume = self.get(old)
            if self._store.record(_KIND, new) is not None:
                raise AlreadyExistsError(f"there is a volume {new!r} already")
            renamed = self._put(volume._replace(name=new))
            self._store.delete_record(_KIND, old)
            return renamed

    def commit(self, name: str, changes: Changes, lease: Lease, known: Iterable[bytes]) -> Volume:
        """Makes the next version of a volume; it survives a power cut when this returns.

        Entries may name objects that the volume has, and those in `known`, which the lease keeps. Of two writers the
        later one wins, file by file. Raises NotFoundError for a volume or an object that is not there, FileExistsError
        for a place that is taken where only new ones may be, InvalidError for what no tree can hold.
        """
        with self._changing:
            volume = self.get(name)
            tree = self._store.tree(volume.tree_id)
            allowed = {*known, *tree.digests(), b""}
            for entry in changes.entries:
                # Naming a hash must not give anybody a file that is somewhere else in the store.
                if entry.digest not in allowed:
                    raise NotFoundError(f"volume {name!r} was changed meanwhile: {shown(entry.path)} cannot be taken")
            changed = apply(tree, changes)
            if changed == tree:
                return volume
            tree_id = lease.add_tree(changed)
            self._store.sync()
            committed = self._put(volume._replace(tree_id=tree_id, updated_at=time.time()))
            kept = frozenset(changed.digests())
            self._let_go(volume.tree_id, (entry for entry in tree if entry.digest not in kept))
            return committed

    def _let_go(self, tree_id: str, entries: Iterable[Entry]) -> None:
        """No volume has this version any more, nor, as far as is known here, these entries."""
        sizes = {entry.digest: entry.size for entry in entries if entry.digest}
        self._store.dead.add(self._store.tree_bytes(tree_id) + sum(sizes.values()))

    def _put(self, volume: Volume) -> Volume:
        data = {"volume_id": volume.volume_id, "created_at": volume.created_at, "updated_at": volume.updated_at}
        if volume.is_ephemeral:
            data["ephemeral"] = True
        self._store.put_record(_KIND, volume.name, trees=[volume.tree_id], data=data, pinned=True, durable=True)
        return volume


def apply(tree: Tree, changes: Changes) -> Tree:
    """The tree after `changes`.

    A directory that is removed stays where something is left in it, which somebody else has put there. A file takes the
    place of a directory with all that is in it, and the other way round. The root directory stays. Hard links are files
    of their own. Raises FileExistsError, InvalidError.
    """
    by_path = {entry.path: entry for entry in tree}
    if changes.only_new:
        for entry in changes.entries:
            found = by_path.get(entry.path)
            if found is not None and not (found.is_directory and entry.is_directory):
                raise FileExistsError(f"{shown(entry.path)} exists already; say force=True (--force) to replace it")
    inside: dict[bytes, int] = {}
    for path in by_path:
        if path:
            parent = path.rpartition(b"/")[0]
            inside[parent] = inside.get(parent, 0) + 1

    def drop(path: bytes) -> None:
        del by_path[path]
        inside[path.rpartition(b"/")[0]] -= 1

    # What is in a directory comes before it.
    for path in sorted(changes.removed, reverse=True):
        if path and path in by_path and not inside.get(path):
            drop(path)
    put = {entry.path: entry for entry in changes.entries if entry.path}
    for path, entry in put.items():
        for parent in parents(path):
            if parent in put and not put[parent].is_directory:
                raise InvalidError(f"{shown(path)} is in {shown(parent)}, which is no directory")
            above = by_path.get(parent)
            if above is None or not above.is_directory:
                by_path[parent] = msgspec.structs.replace(default_directory(parent), mtime_ns=entry.mtime_ns)
        below = by_path.get(path)
        if below is not None and below.is_directory and not entry.is_directory:
            for other in [other for other in by_path if other.startswith(path + b"/")]:
                del by_path[other]
        by_path[path] = entry if not entry.link else msgspec.structs.replace(entry, link=0)
    return Tree.of(by_path.values())


def is_kept(mode: int) -> bool:
    """Whether volumes hold files of this mode: regular ones, directories and symlinks."""
    return stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def _volume(record: Record) -> Volume:
    data = record.data
    times = data["created_at"], data["updated_at"]
    return Volume(record.key, data["volume_id"], record.trees[0], *times, data.get("ephemeral", False))
