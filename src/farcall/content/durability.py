"""What a power cut may have done to a store, and how little has to be looked at to know.

Nothing is synced file by file: content can be fetched or built again, and a sync for each file would take longer than
writing it. So after a crash of the machine a file may be there under its name without its bytes. Names are hashes,
which tells a wrong object from a right one; what is needed is to look. The store remembers, in `boot`, which start of
the machine wrote to it last and up to when everything was synced. Whoever opens it first after a restart hashes again
what was written since.
"""

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from farcall.content.disk import remove_all, sync_file_system, write_file
from farcall.content.files import hash_file
from farcall.errors import CorruptedError, InvalidError

if TYPE_CHECKING:
    from farcall.content.store import Store

_MARGIN = 2.0  # seconds: the coarsest clock of a file system


class Boot(msgspec.Struct, frozen=True):
    """The contents of `boot`: the kernel's id of this start, and the time up to which everything is on the disk."""

    boot_id: str
    synced: float = 0.0


def read_boot(root: Path) -> Boot | None:
    """What the store says; None where it says nothing that can be read, as a new one does."""
    try:
        return msgspec.json.decode((root / "boot").read_bytes(), type=Boot)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_boot(root: Path, synced: float) -> None:
    """Remember that this start of the machine writes to the store, and that all before `synced` is on the disk."""
    made = root / "incoming" / f"boot-{secrets.token_hex(4)}"
    write_file(str(made), msgspec.json.encode(Boot(boot_id(), synced)), 0o600)
    os.rename(made, root / "boot")


def boot_id() -> str:
    """The kernel's id of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def sync(store: "Store") -> None:
    """See `Store.sync`."""
    before = time.time() - _MARGIN
    sync_file_system(store.root)
    with store.steady():
        known = read_boot(store.root)
        if known is None or known.synced < before:
            write_boot(store.root, before)
    sync_file_system(store.root)


def recover(store: "Store") -> None:
    """After a restart of the machine: remove what was written since the last sync and is not what its name says.

    Objects and trees are hashed; trees go whose objects are not all there, and records whose trees are not. What mounts
    made of trees since goes, too: it is made again. Holds the store exclusively meanwhile.
    """
    with store.exclusive():
        known = read_boot(store.root)
        if known is not None and known.boot_id == boot_id():
            return  # another process was faster
        since = known.synced if known is not None and known.synced <= time.time() else 0.0
        lost: set[bytes] = set()
        for prefix in os.listdir(store.objects):
            for path in _changed_since(store.objects / prefix, since):
                if not is_named_by_hash(path, prefix + path.name):
                    path.unlink()
                    lost.add(bytes.fromhex(prefix + path.name))
        for path in (store.root / "trees").iterdir():
            is_new = path.stat().st_ctime >= since
            if (is_new or lost) and not _is_whole(store, path, lost, is_new):
                path.unlink()
        for path in store.record_files.files():
            if path.stat().st_ctime >= since and not _has_its_trees(store, path):
                path.unlink()
        for kind in ("erofs", "farms", "variants"):
            for path in _changed_since(store.root / kind, since):
                remove_all(path)
        write_boot(store.root, time.time() - _MARGIN)


def is_named_by_hash(path: Path, name: str) -> bool:
    """Whether a file's bytes have the SHA-256 that its name says. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return hash_file(fd, os.fstat(fd).st_size).hex() == name
    finally:
        os.close(fd)


def _changed_since(directory: Path, since: float) -> list[Path]:
    return [path for path in directory.iterdir() if path.lstat().st_ctime >= since]


def _is_whole(store: "Store", path: Path, lost: set[bytes], is_new: bool) -> bool:
    """Whether a tree can be read, and nothing that it names is lost. The objects of an old one were there before."""
    try:
        tree = store.tree(path.name)
    except (CorruptedError, InvalidError):
        return False
    if store.partial_path(tree.id).exists():
        return True  # what it lacks is fetched
    return not lost & tree.digests() and not (is_new and any(not store.has(entry.digest) for entry in tree))


def _has_its_trees(store: "Store", path: Path) -> bool:
    try:
        record = store.record_files.at(path)
    except CorruptedError:
        return False
    return record is not None and all(store.tree_path(tree_id).exists() for tree_id in record.trees)
