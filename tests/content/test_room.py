"""Room for what comes from elsewhere, on a disk of so many bytes."""

import os
from types import SimpleNamespace

import pytest

from farcall.content import Entry, Store
from farcall.content.room import KEPT_DAYS, KIND, Room
from farcall.errors import ResourceExhaustedError

MIB = 1 << 20
DISK = 10 * MIB


@pytest.fixture
def room(store: Store, monkeypatch: pytest.MonkeyPatch) -> Room:
    def statvfs(path: object) -> SimpleNamespace:
        free = DISK - store.statistics().object_bytes
        return SimpleNamespace(f_bavail=free, f_blocks=DISK, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return Room(store, "worker w1")


def fetched(store: Store, room: Room, days_ago: float) -> str:
    """A tree of two MiB that was used so long ago."""
    with store.lease("test") as lease:
        digest = lease.add_bytes(os.urandom(2 * MIB))
        tree_id = lease.add_tree([Entry(b"file", 0o100644, size=2 * MIB, digest=digest)])
        room.use(tree_id)
    path = store.record_files.path(KIND, tree_id)
    at = path.stat().st_mtime - days_ago * 86400
    os.utime(path, (at, at))
    return tree_id


def is_here(store: Store, tree_id: str) -> bool:
    return store.tree_path(tree_id).exists()


def test_what_was_used_least_recently_makes_way(store: Store, room: Room) -> None:
    trees = [fetched(store, room, days_ago) for days_ago in (1, 3, 2)]
    assert room.has(3 * MIB) and not room.has(4 * MIB)
    room.make(3 * MIB, "f")
    assert all(is_here(store, tree_id) for tree_id in trees)
    room.make(4 * MIB, "f")
    assert [is_here(store, tree_id) for tree_id in trees] == [True, False, True]
    room.use(trees[2])  # but now the other one is older
    room.make(7 * MIB, "f")
    assert [is_here(store, tree_id) for tree_id in trees] == [False, False, True]


def test_what_is_in_use_stays_and_what_lacks_is_said(store: Store, room: Room) -> None:
    tree_id = fetched(store, room, 1)
    with store.lease("containers") as lease:
        lease.keep_tree(tree_id)
        said = r"w1 has no room for the files of f: 9\.0 MiB and 0\.2 MiB to spare .* 8\.0 MiB are free.*larger disk"
        with pytest.raises(ResourceExhaustedError, match=said):
            room.make(9 * MIB, "the files of f")
        assert is_here(store, tree_id)


def test_what_a_tree_lacks(store: Store, room: Room) -> None:
    tree = store.tree(fetched(store, room, 0))
    assert room.lacking(tree) == 0
    [digest] = tree.digests()
    store.path_of(digest).unlink()
    assert room.lacking(tree) == 2 * MIB


def test_what_nobody_has_used_for_long_is_kept_no_more(store: Store, room: Room) -> None:
    old, new = fetched(store, room, KEPT_DAYS + 1), fetched(store, room, KEPT_DAYS - 1)
    room.forget_old()
    assert [one.key for one in store.records(KIND)] == [new]
    assert is_here(store, old), "until something is collected"
