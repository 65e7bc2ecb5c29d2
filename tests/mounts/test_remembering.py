"""A store whose trees are read once."""

from pathlib import Path

from farcall.content import Entry, Store
from farcall.mounts.lazy.remembering import Remembering


def test_a_tree_is_read_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.lease("test") as lease:
        tree_id = lease.add_tree([Entry(b"a", 0o100644, size=1, digest=lease.add_bytes(b"a"))])
        remembering = Remembering(store.root)
        tree = remembering.tree(tree_id)
        assert tree == store.tree(tree_id)
        store.tree_path(tree_id).unlink()
        assert remembering.tree(tree_id) is tree
