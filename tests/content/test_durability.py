"""Power cuts: on a real ext4 that forgets what was not on its disk, and step by step on files that are made wrong."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farcall.content import Lease, Store, Tree, durability
from farcall.content.verify import verify

from .gc_worker import entry

PROGRAM = Path(__file__).with_name("power_cut_program.py")


def add(lease: Lease, key: str, *contents: str) -> Tree:
    for content in contents:
        lease.add_bytes(content.encode())
    tree = Tree.of([entry(content[0], content.encode()) for content in contents])
    lease.store.put_record("images", key, trees=[lease.add_tree(tree)])
    return tree


def restart(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as the first process finds it after a restart of the machine."""
    monkeypatch.setattr(durability, "boot_id", lambda: "another")
    monkeypatch.setattr("farcall.content.store.boot_id", lambda: "another")
    return Store(store.root)


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["zeros", "empty", "missing"])
def test_what_a_power_cut_has_damaged_is_gone_and_never_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with store.lease("test") as lease:
        whole, hurt = add(lease, "whole", "a" * 10, "b"), add(lease, "hurt", "c" * 10, "b")
    object_ = store.path_of(hurt.entries[-1].digest)
    assert object_.stat().st_size == 10
    if how == "missing":
        object_.unlink()
    else:
        damage(object_, bytes(10 if how == "zeros" else 0))
    for kind in ("erofs", "farms"):
        (store.root / kind / whole.id).mkdir()
    store = restart(store, monkeypatch)
    assert not object_.exists() and not store.tree_path(hurt.id).exists()
    assert [record.key for record in store.records()] == ["whole"]
    assert os.listdir(store.root / "erofs") == os.listdir(store.root / "farms") == []
    assert verify(store).damaged == []
    with store.lease("again") as lease:
        add(lease, "hurt", "c" * 10, "b")
    assert verify(store).damaged == []


def test_damaged_trees_and_records_are_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.lease("test") as lease:
        trees = {key: add(lease, key, key) for key in ("kept", "tree", "record", "zero")}
    damage(store.tree_path(trees["tree"].id), b"")
    damage(store.root / "records" / "images" / "record", b"\0" * 100)
    damage(store.root / "records" / "images" / "zero", b"")
    store = restart(store, monkeypatch)
    assert [record.key for record in store.records()] == ["kept"]
    assert verify(store).damaged == []


def test_what_was_synced_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = durability.is_named_by_hash

    def is_named_by_hash(path: Path, name: str) -> bool:
        read.append(name)
        return real(path, name)

    with store.lease("test") as lease:
        earlier = lease.add_bytes(b"earlier")
        synced = store.path_of(earlier).stat().st_ctime + 0.001
        durability.write_boot(store.root, synced)
        later = lease.add_bytes(b"later")
        while store.path_of(later).stat().st_ctime <= synced:  # clocks of file systems are coarse
            os.utime(store.path_of(later))
    monkeypatch.setattr(durability, "is_named_by_hash", is_named_by_hash)
    restart(store, monkeypatch)
    assert read == [later.hex()]


def test_sync_says_up_to_when(store: Store) -> None:
    assert (known := durability.read_boot(store.root)) is not None
    store.sync()
    assert (synced := durability.read_boot(store.root)) is not None
    assert known.boot_id == synced.boot_id and known.synced < synced.synced < time.time() - 1.5


def test_nothing_is_read_within_the_same_start_of_the_machine(store: Store, lease: Lease) -> None:
    digest = lease.add_bytes(b"x" * 10)
    damage(store.path_of(digest), b"y" * 10)
    assert Store(store.root).path_of(digest).exists(), "that is for `verify`"


@pytest.mark.root("mounts a file system of its own, and takes its power away")
def test_a_power_cut(tmp_path: Path, rng: random.Random) -> None:
    seed = str(rng.randrange(2**31))
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, PROGRAM, tmp_path, seed], capture_output=True, text=True, timeout=100
    )
    if "no loop devices" in done.stderr:
        pytest.skip("needs a loop device")
    assert done.stdout.endswith("held\n"), done.stderr
    print(done.stdout)
