import os
from pathlib import Path

import pytest

from farcall.content import Lease, Store, Tree
from farcall.content.gc import collect
from farcall.content.verify import Damage, verify

from .gc_worker import entry


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def add(lease: Lease, key: str, *contents: str, pinned: bool = False) -> Tree:
    for content in contents:
        lease.add_bytes(content.encode())
    tree = Tree.of([entry(f"f{number}", content.encode()) for number, content in enumerate(contents)])
    lease.store.put_record("images", key, trees=[lease.add_tree(tree)], pinned=pinned)
    return tree


def test_nothing_is_wrong(store: Store, lease: Lease) -> None:
    add(lease, "one", "a", "bb")
    add(lease, "two", "bb", "c" * 300_000)
    found = verify(store)
    assert (found.objects, found.object_bytes, found.trees, found.damaged) == (3, 300_003, 2, [])
    assert verify(Store(store.root)) == found


@pytest.mark.parametrize("how", ["other bytes", "truncated", "empty", "longer"])
def test_a_damaged_object_is_taken_out_of_use_and_named(store: Store, lease: Lease, how: str) -> None:
    hurt, whole = add(lease, "hurt", "a" * 100, "b"), add(lease, "whole", "b")
    pinned = add(lease, "pinned", "a" * 100, pinned=True)
    digest = hurt.entries[1].digest
    path = store.path_of(digest)
    for made in (store.root / "erofs", store.root / "farms"):
        (made / hurt.id).mkdir() if made.name == "farms" else (made / hurt.id).touch()
    overwrite(path, {"other bytes": b"x" * 100, "truncated": b"a" * 99, "empty": b"", "longer": b"a" * 101}[how])
    found = verify(store)
    size = {"truncated": 99, "empty": 0, "longer": 101}.get(how, 100)
    assert found.damaged[0] == Damage("object", digest.hex(), f"its {size} bytes have another hash")
    lost = f"it has /f0, whose object {digest.hex()} is not there"
    assert sorted(found.damaged[1:3]) == sorted(Damage("tree", tree.id, lost) for tree in (hurt, pinned))
    assert found.damaged[3:] == [
        Damage("record", "images/hurt", f"its tree {hurt.id} is not there"),
        Damage("record", "images/pinned", f"its tree {pinned.id} is not there"),
    ]
    assert (found.objects, found.trees) == (1, 1)
    assert {record.key for record in store.records()} == {"whole", "pinned"}
    assert not path.exists() and not store.tree_path(hurt.id).exists() and store.tree(whole.id) == whole
    assert os.listdir(store.root / "erofs") == os.listdir(store.root / "farms") == []
    assert store.statistics().quarantined == 1

    with store.lease("again") as again:  # what is added again is as good as new
        assert add(again, "hurt", "a" * 100, "b").id == hurt.id
        assert store.read(digest) == b"a" * 100
        again.add_tree(pinned)
    assert verify(store).damaged == []
    collect(store)
    assert store.statistics().quarantined == 0


def test_damaged_trees_and_records(store: Store, lease: Lease) -> None:
    add(lease, "fine", "a")
    hurt, other = add(lease, "hurt", "a", "b"), add(lease, "other", "b")
    overwrite(store.tree_path(hurt.id), store.tree_path(hurt.id).read_bytes()[:-1])
    (store.root / "records" / "images" / "other").write_text("{}")
    found = verify(store)
    assert [(damage.kind, damage.name) for damage in found.damaged] == [
        ("tree", hurt.id),
        ("record", "images/hurt"),
        ("record", "images/other"),
    ]
    assert [record.key for record in store.records()] == ["fine"]
    lease.close()
    collect(store)  # which nothing stands in the way of any more
    assert not store.tree_path(other.id).exists() and store.statistics().objects == 1


def test_a_damaged_copy_goes_with_the_directories_that_have_it(store: Store, lease: Lease) -> None:
    tree, other = add(lease, "one", "a"), add(lease, "two", "b")
    for one in (tree, other):
        (store.root / "farms" / one.id / "root").mkdir(parents=True)
    copy = store.root / "variants" / f"{tree.entries[1].digest.hex()}-0123"
    copy.write_bytes(b"x")
    assert verify(store).damaged == [Damage("copy", copy.name, "its 1 bytes have another hash")]
    assert os.listdir(store.root / "farms") == [other.id] and not copy.exists()
    assert store.tree(tree.id) == tree
