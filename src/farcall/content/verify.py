"""Verification: everything is read and hashed again, and what is not what its name says is taken out of use."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from farcall.content.disk import disk_error, remove_all
from farcall.content.durability import is_named_by_hash
from farcall.content.store import Store
from farcall.content.threads import side_by_side
from farcall.content.tree import shown
from farcall.errors import CorruptedError, InvalidError, NotFoundError


class Damage(NamedTuple):
    """One thing that was not what its name says, or names what is not there; it is out of use now.

    `kind` is "object", "tree", "record" or "copy" (of an object, made by mounts); `name` is that of its file.
    """

    kind: str
    name: str
    reason: str


@dataclass
class Verified:
    """What a verification has looked at, and found."""

    objects: int = 0
    """Objects that are right."""
    object_bytes: int = 0
    """Bytes in them, holes included."""
    trees: int = 0
    """Trees that are right, with all their objects there, or elsewhere."""
    damaged: list[Damage] = field(default_factory=list[Damage])
    """What was not, in the order in which one follows from the other: objects, trees, records."""


def verify(store: Store) -> Verified:
    """Hash every object and every tree again. Safe at any time; takes as long as reading everything.

    A damaged object or tree is moved to the store's `quarantine`, where it stays until the next collection. A tree
    that names what is not there goes, with what mounts have made of it: it can be made again from whatever it was made
    of. So does a record that names such a tree, unless it is pinned. Containers that run on them see files vanish.
    Content that is added again later is as good as new. Raises what `disk_error` says.
    """
    try:
        with store.collecting():  # so that nothing goes meanwhile but what we take
            return _Verification(store).run()
    except OSError as error:
        raise disk_error(error, "verifying", store.root) from error


class _Verification:
    """One run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._quarantine = store.root / "quarantine"
        self._result = Verified()
        self._sizes: list[int] = []  # of objects that are right; appended to by several threads
        self._suspects: list[Path] = []
        self._bad_copies: set[bytes] = set()  # objects of which mounts had a damaged copy

    def run(self) -> Verified:
        side_by_side(self._look_at_objects, os.listdir(self._store.objects))
        for path in sorted(self._suspects):
            self._take_out("object", path, path.parent.name + path.name)
        for path in sorted((self._store.root / "variants").iterdir()):
            self._look_at_copy(path)
        for path in sorted((self._store.root / "trees").iterdir()):
            self._look_at_tree(path)
        for path in sorted(self._store.record_files.files()):
            self._look_at_record(path)
        self._result.objects, self._result.object_bytes = len(self._sizes), sum(self._sizes)
        return self._result

    def _look_at_objects(self, prefix: str) -> None:
        for name in os.listdir(self._store.objects / prefix):
            path = self._store.objects / prefix / name
            try:
                size = path.stat().st_size
                wrong = _wrong(path, prefix + name)
            except FileNotFoundError:
                continue
            if wrong is None:
                self._sizes.append(size)
            else:
                self._suspects.append(path)

    def _look_at_copy(self, path: Path) -> None:
        name = path.name.partition("-")[0]
        if (wrong := _wrong(path, name)) is not None:
            path.unlink(missing_ok=True)
            self._bad_copies.add(bytes.fromhex(name))
            self._result.damaged.append(Damage("copy", path.name, wrong))

    def _look_at_tree(self, path: Path) -> None:
        try:
            tree = self._store.tree(path.name)
        except NotFoundError:
            return
        except (CorruptedError, InvalidError):
            self._take_out("tree", path, path.name)
            self._remove_mounts(path.name)
            return
        lost = None
        if not self._store.partial_path(tree.id).exists():
            lost = next((entry for entry in tree if not self._store.has(entry.digest)), None)
        if lost is not None:
            with self._store.exclusive():
                path.unlink(missing_ok=True)
            reason = f"it has {shown(lost.path)}, whose object {lost.digest.hex()} is not there"
            self._result.damaged.append(Damage("tree", tree.id, reason))
        else:
            self._result.trees += 1
        if lost is not None or not self._bad_copies.isdisjoint(tree.digests()):
            self._remove_mounts(tree.id)

    def _look_at_record(self, path: Path) -> None:
        name = f"{path.parent.name}/{path.name}"
        try:
            record = self._store.record_files.at(path)
        except CorruptedError as error:
            os.rename(path, self._quarantine / f"{path.parent.name}-{path.name}")
            self._result.damaged.append(Damage("record", name, str(error)))
            return
        if record is None:
            return
        lost = next((tree_id for tree_id in record.trees if not self._store.tree_path(tree_id).exists()), None)
        if lost is not None:
            if not record.pinned:
                path.unlink(missing_ok=True)
            self._result.damaged.append(Damage("record", name, f"its tree {lost} is not there"))

    def _take_out(self, kind: str, path: Path, name: str) -> None:
        """Move it to quarantine, unless somebody has put a right one in its place meanwhile."""
        with self._store.exclusive():
            try:
                wrong = _wrong(path, name)
            except FileNotFoundError:
                return
            if wrong is not None:
                os.rename(path, self._quarantine / f"{kind}-{name}")
                self._result.damaged.append(Damage(kind, name, wrong))

    def _remove_mounts(self, tree_id: str) -> None:
        (self._store.root / "erofs" / tree_id).unlink(missing_ok=True)
        remove_all(self._store.root / "farms" / tree_id)


def _wrong(path: Path, name: str) -> str | None:
    """What is wrong with a file that is named by its hash; None where nothing is."""
    try:
        if is_named_by_hash(path, name):
            return None
        return f"its {path.stat().st_size:,} bytes have another hash"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"it cannot be read: {error.strerror}"
