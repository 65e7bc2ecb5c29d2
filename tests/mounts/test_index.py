"""What the file system of lazy images knows of the store's trees."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farcall.content import Entry, Store
from farcall.content.lease import Lease
from farcall.mounts.lazy.index import MOST_COMPLETE, Index, node_of

FILES = 10  # of each tree
TREES = 5 * MOST_COMPLETE

Made = tuple[str, list[bytes]]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Lease]:
    """Another store, which has everything."""
    with Store(tmp_path / "elsewhere").lease("test") as lease:
        yield lease


@pytest.fixture
def make(elsewhere: Lease) -> Callable[[Lease, int], Made]:
    def make(lease: Lease, number: int) -> Made:
        """A tree whose files nobody has fetched, and their objects."""
        data = [content(number, file) for file in range(FILES)]
        digests = [elsewhere.add_bytes(one) for one in data]
        entries = [
            Entry(b"%d" % file, 0o100644, size=len(one), digest=digest)
            for file, (one, digest) in enumerate(zip(data, digests, strict=True))
        ]
        return lease.add_tree(entries, partial=True), digests

    return make


def content(number: int, file: int) -> bytes:
    return b"file %d of tree %d" % (file, number)


def test_what_has_arrived_is_forgotten_by_and_by(tmp_path: Path, make: Callable[[Lease, int], Made]) -> None:
    """And found all the same, by the numbers that the kernel has."""
    store = Store(tmp_path / "content")
    index = Index(store)
    with store.lease("test") as lease:
        long_ago = make(lease, 0)
        for number in range(1, TREES):
            tree_id, digests = make(lease, number)
            index.add(tree_id)
            assert len(index) <= FILES * (MOST_COMPLETE + 3)
            assert all(index.find(digest) is not None for digest in (*digests, *long_ago[1]))
            for file in range(FILES):
                lease.add_bytes(content(number, file))
            assert not store.missing(tree_id), "it is partial no more"
        for digest in (*digests, *long_ago[1]):
            wanted = index.at(node_of(digest))
            assert wanted is not None and wanted.digest == digest
    assert len(index.trees) <= MOST_COMPLETE + 3
