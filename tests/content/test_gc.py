"""What a collection removes, one thing at a time; many at once: test_gc_model.py."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farcall.content import Lease, Store, Tree, imports
from farcall.content.gc import BATCH, collect
from farcall.content.roots import KEEP_DOWNLOADS
from farcall.errors import CorruptedError

from .gc_worker import entry


def add(lease: Lease, *contents: str) -> Tree:
    for content in contents:
        lease.add_bytes(content.encode())
    tree = Tree.of([entry(str(number), content.encode()) for number, content in enumerate(contents)])
    lease.add_tree(tree)
    return tree


def used(store: Store, key: str, when: float) -> None:
    os.utime(store.root / "records" / "images" / key, (when, when))


def is_whole(store: Store, tree: Tree) -> bool:
    try:
        return store.tree_path(tree.id).exists() and all(store.read(one.digest) is not None for one in tree)
    except Exception:
        return False


def test_what_nothing_keeps_goes(store: Store) -> None:
    with store.lease("test") as lease:
        kept, shared, lost = add(lease, "a", "b"), add(lease, "b", "c"), add(lease, "c", "d")
        store.put_record("images", "one", trees=[kept.id])
        with store.lease("another") as other:
            other.keep_tree(shared.id)
            lease.close()
            result = collect(store)
            assert is_whole(store, kept) and is_whole(store, shared) and not is_whole(store, lost)
            assert (result.trees, result.objects, result.records, result.stuck) == (1, 1, 0, 0)
            assert result.freed_bytes > 0 and result.kept_bytes == store.statistics().object_bytes
        collect(store)
        assert is_whole(store, kept) and not is_whole(store, shared)
        store.delete_record("images", "one")
        collect(store)
    statistics = store.statistics()
    assert (statistics.objects, statistics.trees, statistics.leases) == (0, 0, 0)


def test_more_than_a_batch(store: Store) -> None:
    with store.lease("test") as lease:
        tree = add(lease, *(str(number) for number in range(3 * BATCH)))
    with store.lease("test") as lease:
        lease.keep_objects({one.digest: one.size for one in tree.entries[:11]})
        assert collect(store).objects == 3 * BATCH - 10
    assert store.statistics().objects == 10


def test_the_lease_of_a_process_that_was_killed_is_void(store: Store) -> None:
    program = (
        "import os, sys; from pathlib import Path; from farcall.content import Store\n"
        "lease = Store(Path(sys.argv[1])).lease('killed'); lease.add_bytes(b'x' * 1000)\n"
        "(lease.scratch / 'half-made').write_bytes(b'y'); print('ready', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    assert collect(store).objects == 0
    other.kill()
    other.wait()
    assert collect(store).objects == 1
    assert [*(store.root / "incoming").iterdir(), *(store.root / "leases").iterdir()] == []


def test_downloads_that_nobody_came_back_for_go(store: Store) -> None:
    for name, age in (("old", KEEP_DOWNLOADS + 60), ("new", 60.0)):
        (store.root / "downloads" / name).touch()
        os.utime(store.root / "downloads" / name, (time.time() - age,) * 2)
    collect(store)
    assert os.listdir(store.root / "downloads") == ["new"]


def test_a_line_torn_by_a_full_disk_hides_no_other(store: Store) -> None:
    with store.lease("test") as lease:
        with (store.root / "leases" / lease.id).open("ab") as stream:
            stream.write(b"o12ab")
        kept = [lease.add_bytes(b"one"), lease.add_bytes(b"two")]
        assert collect(store).objects == 0
        assert all(store.has(digest) for digest in kept)


def test_records_go_least_recently_used_first(store: Store) -> None:
    with store.lease("test") as lease:
        trees = {key: add(lease, key * 1000, "shared" * 1000) for key in ("old", "mid", "new")}
    for when, key in enumerate(trees):
        store.put_record("images", key, trees=[trees[key].id])
        used(store, key, 1000.0 + when)
    assert collect(store, keep_bytes=100_000).records == 0
    assert collect(store, keep_bytes=12_500).records == 1
    assert [record.key for record in store.records()] == ["mid", "new"]
    store.record("images", "mid")  # asking is using
    with store.lease("start") as lease:
        lease.keep_tree(trees["new"].id)
        assert collect(store, keep_bytes=0).records == 1
        assert is_whole(store, trees["new"]), "a lease keeps it, whatever it takes"
        assert [record.key for record in store.records()] == ["new"]
    store.put_record("images", "pinned", trees=[trees["new"].id], pinned=True)
    assert collect(store, keep_bytes=0).records == 0, "what a pinned record keeps anyway costs nothing"
    assert is_whole(store, trees["new"])


def test_what_mounts_made_goes_with_its_tree(store: Store) -> None:
    with store.lease("test") as lease:
        kept, lost = add(lease, "kept"), add(lease, "lost")
        store.put_record("images", "one", trees=[kept.id])
    variants = {tree.id: store.root / "variants" / f"v-{tree.id}" for tree in (kept, lost)}
    for tree in (kept, lost):
        (store.root / "erofs" / tree.id).write_bytes(b"image")
        imports.write(store, tree.id, "function", ["/usr/lib/one.py"])
        root = store.root / "farms" / tree.id / "root"
        root.mkdir(parents=True)
        variants[tree.id].write_bytes(b"copy")
        os.link(variants[tree.id], root / "variant")
        os.link(store.path_of(tree.entries[1].digest), root / "object")
        root.chmod(0o555)
    result = collect(store)
    assert (result.trees, result.objects, result.stuck) == (1, 2, 0)
    for kind in ("trees", "erofs", "farms", "imports"):
        assert os.listdir(store.root / kind) == [kept.id]
    assert list((store.root / "variants").iterdir()) == [variants[kept.id]]


@pytest.mark.parametrize("what", ["record", "tree"])
def test_nothing_goes_while_nobody_knows_what_must_stay(store: Store, what: str) -> None:
    with store.lease("test") as lease:
        kept, lost = add(lease, "kept"), add(lease, "lost")
        store.put_record("images", "one", trees=[kept.id])
    damaged = store.root / "records" / "images" / "one" if what == "record" else store.tree_path(kept.id)
    damaged.chmod(stat.S_IRUSR | stat.S_IWUSR)
    damaged.write_bytes(b"?")
    for keep_bytes in (None, 0):
        with pytest.raises(CorruptedError, match=r"cannot be read|is damaged"):
            collect(store, keep_bytes=keep_bytes)
    assert store.statistics().objects == 2 and store.tree_path(lost.id).exists()


def test_a_collection_that_was_killed_is_finished_by_the_next(store: Store) -> None:
    """At every system call that changes something, in turn."""
    program = (
        "import os, sys; from pathlib import Path; from farcall.content import Store\n"
        "from farcall.content.gc import collect\n"
        "left = int(sys.argv[2])\n"
        "def counted(real):\n"
        "    def call(*arguments, **named):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "        return real(*arguments, **named)\n"
        "    return call\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for name in ('unlink', 'rename', 'rmdir'): setattr(os, name, counted(getattr(os, name)))\n"
        "collect(store)\n"
    )
    ended = False
    for calls in range(40):
        with store.lease("test") as lease:
            kept, lost = add(lease, "kept"), add(lease, "lost", "too")
            store.put_record("images", "one", trees=[kept.id])
        (store.root / "farms" / lost.id / "root").mkdir(parents=True, exist_ok=True)
        killed = subprocess.run([sys.executable, "-c", program, store.root, str(calls)]).returncode
        assert is_whole(store, kept)
        for path in store.objects.glob("*/*"):
            store.read(bytes.fromhex(path.parent.name + path.name))
        for path in (store.root / "trees").iterdir():
            assert is_whole(store, store.tree(path.name)), "a tree that is there has its objects"
        collect(store)
        assert store.statistics().objects == 1
        assert list((store.root / "incoming").iterdir()) == list((store.root / "farms").iterdir()) == []
        if killed == 0:
            ended = True
            break
    assert ended and calls > 3


def test_two_collections_take_turns(store: Store, tmp_path: Path) -> None:
    with store.lease("test") as lease:
        add(lease, *(str(number) for number in range(1000)))
    program = (
        "import sys; from pathlib import Path; from farcall.content import Store\n"
        "from farcall.content.gc import collect\n"
        "print(collect(Store(Path(sys.argv[1]))).objects)"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", program, store.root], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(int(other.communicate()[0]) for other in others) == [0, 1000]
