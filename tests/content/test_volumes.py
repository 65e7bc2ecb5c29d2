"""Volumes of a store: versions, what two writers make of each other's changes, and what is left when one is cut off."""

import random
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import msgspec
import pytest

from farcall.content import Store, Tree
from farcall.content.gc import collect
from farcall.content.tree import Entry
from farcall.content.volumes import Changes, Volumes, apply
from farcall.errors import AlreadyExistsError, FileExistsError, InvalidError, NotFoundError


def file(path: str, text: str = "") -> Entry:
    digest = text.encode().ljust(32, b"\0") if text else b""
    return Entry(path.encode(), stat.S_IFREG | 0o644, size=len(text), digest=digest)


def directory(path: str) -> Entry:
    return Entry(path.encode(), stat.S_IFDIR | 0o755)


def paths(tree: Tree) -> list[str]:
    return [entry.path.decode() for entry in tree][1:]


def changes(*entries: Entry, removed: tuple[str, ...] = (), only_new: bool = False) -> Changes:
    return Changes(entries, frozenset(path.encode() for path in removed), only_new)


def test_applying_changes() -> None:
    tree = apply(Tree.of(()), changes(file("a", "1"), file("d/e/f", "2")))
    assert paths(tree) == ["a", "d", "d/e", "d/e/f"]
    tree = apply(tree, changes(file("a", "3"), removed=("d/e/f", "nothing", "")))
    assert paths(tree) == ["a", "d", "d/e"]
    assert apply(tree, changes()) == tree
    assert paths(apply(tree, changes(removed=("d", "d/e")))) == ["a"]


def test_a_directory_that_somebody_has_put_something_into_stays() -> None:
    tree = apply(Tree.of(()), changes(file("d/mine"), file("d/theirs")))
    assert paths(apply(tree, changes(removed=("d", "d/mine")))) == ["d", "d/theirs"]


def test_files_and_directories_take_each_others_place() -> None:
    tree = apply(Tree.of(()), changes(file("d/e/f"), file("d-e"), file("x")))
    assert paths(apply(tree, changes(file("d")))) == ["d", "d-e", "x"]
    assert paths(apply(tree, changes(file("x/y")))) == ["d", "d/e", "d/e/f", "d-e", "x", "x/y"]
    with pytest.raises(InvalidError, match="/a/b is in /a, which is no directory"):
        apply(tree, changes(file("a"), file("a/b")))


def test_only_new_ones() -> None:
    tree = apply(Tree.of(()), changes(file("d/a")))
    assert paths(apply(tree, changes(directory("d"), file("d/b"), only_new=True))) == ["d", "d/a", "d/b"]
    for taken in (file("d/a"), file("d"), directory("d/a")):
        with pytest.raises(FileExistsError, match="exists already"):
            apply(tree, changes(taken, only_new=True))


@pytest.mark.parametrize("path", ["..", "a/../b", "/a", "a//b", "a\0b", "x" * 300])
def test_no_path_leads_out(path: str) -> None:
    with pytest.raises(InvalidError):
        apply(Tree.of(()), changes(file(path)))


def test_like_a_dict_of_files(rng: random.Random) -> None:
    """Changes of files alone do what they do to a dict, as long as no file is in another's way."""
    tree, model = Tree.of(()), dict[str, str]()
    for _ in range(200):
        put = {f"{rng.choice('abc')}/{rng.choice('xyz')}/{rng.randrange(4)}": str(rng.randrange(9)) for _ in range(3)}
        gone = {name for name in model if rng.random() < 0.2}
        tree = apply(tree, changes(*(file(name, text) for name, text in put.items()), removed=tuple(gone)))
        model = {name: text for name, text in model.items() if name not in gone} | put
        assert {one.path.decode(): chr(one.digest[0]) for one in tree if one.is_regular} == model


def test_volumes_have_names(store: Store) -> None:
    volumes = Volumes(store)
    made = volumes.create("one")
    assert volumes.create("one", allow_existing=True) == made == volumes.get("one") == volumes.find(made.volume_id)
    volumes.create("two")
    with pytest.raises(AlreadyExistsError, match="'one'"):
        volumes.create("one")
    with pytest.raises(AlreadyExistsError, match="'two'"):
        volumes.rename("one", "two")
    assert volumes.rename("one", "three").volume_id == made.volume_id
    with pytest.raises(NotFoundError, match="did you mean three"):
        volumes.get("thre")
    volumes.delete("two")
    with pytest.raises(NotFoundError, match=r"no volume 'two'\. Create it"):
        volumes.delete("two")
    assert [volume.name for volume in Volumes(store).all()] == ["three"]


def test_only_what_was_added_or_is_there_can_be_committed(store: Store) -> None:
    volumes = Volumes(store)
    volumes.create("v")
    with store.lease("test") as lease:
        mine, others = lease.add_bytes(b"mine"), lease.add_bytes(b"secret of another")
        entry = Entry(b"a", stat.S_IFREG | 0o644, size=4, digest=mine)
        theirs = msgspec.structs.replace(entry, digest=others, size=17)
        with pytest.raises(NotFoundError, match="/a cannot be taken"):
            volumes.commit("v", Changes((theirs,)), lease, {mine})
        first = volumes.commit("v", Changes((entry,)), lease, {mine})
        again = volumes.commit("v", Changes((msgspec.structs.replace(entry, path=b"b"),)), lease, ())
    assert paths(store.tree(again.tree_id)) == ["a", "b"]
    assert again.updated_at > first.updated_at
    collect(store)
    assert store.read(mine) == b"mine"  # a volume keeps what it has ...
    assert not store.has(others)
    volumes.delete("v")
    collect(store)
    assert not store.has(mine)  # ... for as long as it is there


def test_writers_at_the_same_time_lose_nothing(store: Store) -> None:
    volumes = Volumes(store)
    volumes.create("v")

    def write(who: int) -> None:
        for number in range(5):
            with store.lease("test") as lease:
                text = f"{who} {number}".encode()
                digest = lease.add_bytes(text)
                entry = Entry(f"{who}/{number}".encode(), stat.S_IFREG | 0o644, size=len(text), digest=digest)
                volumes.commit("v", Changes((entry,)), lease, {digest})

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tree = store.tree(volumes.get("v").tree_id)
    assert len([entry for entry in tree if entry.is_regular]) == 20


COMMITS = """
import stat, sys
from pathlib import Path
from farcall.content.store import Store
from farcall.content.tree import Entry
from farcall.content.volumes import Changes, Volumes

store = Store(Path(sys.argv[1]))
volumes = Volumes(store)
number = int(sys.argv[2])
while True:
    number += 1
    text = str(number).encode()
    with store.lease("test") as lease:
        digests = [lease.add_bytes(text + b" %d" % one) for one in range(8)]
        entries = [Entry(b"%d" % one, stat.S_IFREG | 0o644, size=len(text) + 2, digest=digest)
                   for one, digest in enumerate(digests)]
        volumes.commit("v", Changes(tuple(entries)), lease, digests)
    print(number, flush=True)
"""


def test_a_commit_that_is_cut_off_leaves_the_old_version_or_the_new_one(
    store: Store, tmp_path: Path, rng: random.Random
) -> None:
    Volumes(store).create("v")
    program = tmp_path / "commits.py"
    program.write_text(textwrap.dedent(COMMITS))
    done = 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, str(program), str(store.root), str(done)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait()
        process.stdout.close()
        collect(store)
        tree = store.tree(Volumes(store).get("v").tree_id)
        versions = {int(store.read(entry.digest).split()[0]) for entry in tree if entry.is_regular}
        assert len(versions) == 1
        done = versions.pop()
        assert done in (acknowledged, acknowledged + 1)


@pytest.mark.root("mounts a small disk")
def test_a_full_disk_leaves_the_version_that_is_there(tmp_path: Path) -> None:
    from farcall.errors import ResourceExhaustedError

    tmp_path = tmp_path / "disk"
    tmp_path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=10000", "farcall-test", str(tmp_path)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        store = Store(tmp_path / "store")
        volumes = Volumes(store)
        volumes.create("v")
        entry = Entry(b"a", stat.S_IFREG | 0o644, size=3)
        with store.lease("test") as lease:
            digest = lease.add_bytes(b"one")
            volumes.commit("v", Changes((msgspec.structs.replace(entry, digest=digest),)), lease, {digest})
            digest = lease.add_bytes(b"two")
            filler = tmp_path / "filler"
            with filler.open("wb", buffering=0) as full:
                for size in (2**16, 2**12, 1):
                    try:
                        while True:
                            full.write(bytes(size))
                    except OSError:
                        pass
            second = Changes((msgspec.structs.replace(entry, digest=digest),))
            with pytest.raises(ResourceExhaustedError, match="no room"):
                volumes.commit("v", second, lease, {digest})
            assert [store.read(one.digest) for one in store.tree(volumes.get("v").tree_id)][1:] == [b"one"]
            filler.unlink()
            volumes.commit("v", second, lease, {digest})
            assert [store.read(one.digest) for one in store.tree(volumes.get("v").tree_id)][1:] == [b"two"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_versions_leave_behind_is_counted_until_it_is_collected(store: Store) -> None:
    volumes = Volumes(store)
    volumes.create("v")
    assert store.dead.get() == 0
    with store.lease("test") as lease:
        digest = lease.add_bytes(b"x" * 100_000)
        one = Entry(b"one", stat.S_IFREG | 0o644, size=100_000, digest=digest)
        volumes.commit("v", Changes((one,)), lease, [digest])
        small = store.dead.get()
        assert 0 < small < 100_000, "the manifest of the empty version"
        volumes.commit("v", changes(file("two")), lease, ())
        assert store.dead.get() < 100_000, "what the next version has is not dead"
        volumes.commit("v", changes(removed=("one",)), lease, ())
        assert 100_000 < store.dead.get() < 150_000
    collect(store)
    assert Store(store.root).dead.get() == 0
    volumes.delete("v")
    assert 0 < store.dead.get() < 100_000
    (store.root / "dead").write_text("no number")
    assert store.dead.get() == 0
