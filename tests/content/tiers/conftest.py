import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.content import Entry, Lease, Store
from farcall.content.attempts import Timing
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.layout import BLOB_BYTES
from farcall.content.tiers.pusher import Pusher

HURRIED = Timing(first_delay=0.01, longest_delay=0.02)


class Counting:
    """A tier that counts what it is asked for, and may be told to do something first."""

    def __init__(self, inner: DirectoryTier) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.before = lambda name: None
        self._lock = threading.Lock()

    @property
    def title(self) -> str:
        return self.inner.title

    def get(self, name: str) -> bytes:
        with self._lock:
            self.asked.append(name)
        self.before(name)
        return self.inner.get(name)

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self.asked.append(name)
        self.before(name)
        self.inner.put(name, data)


def make_tree(lease: Lease, rng: random.Random, *, small: int = 40, large: int = 1) -> str:
    """A tree of small files, some of them equal, and large ones of a few pieces that are odd in size."""
    entries: list[Entry] = []
    for number in range(small):
        data = b"the same" if number % 10 == 3 else rng.randbytes(rng.randrange(200_000)) or b"x"
        entries.append(Entry(f"lib/{number:04}".encode(), 0o100644, size=len(data), digest=lease.add_bytes(data)))
    for number in range(large):
        data = rng.randbytes(2 * BLOB_BYTES + 1234 + number)
        entries.append(Entry(f"big/{number}".encode(), 0o100755, size=len(data), digest=lease.add_bytes(data)))
    entries += [Entry(b"empty", 0o100644), Entry(b"link", 0o120777, target=b"lib/0001")]
    return lease.add_tree(entries)


@pytest.fixture
def tree_id(lease: Lease, rng: random.Random) -> str:
    """A tree in `store`."""
    return make_tree(lease, rng)


@pytest.fixture
def tier(tmp_path: Path) -> Counting:
    """An empty tier."""
    return Counting(DirectoryTier(tmp_path / "tier"))


@pytest.fixture
def filled(store: Store, tree_id: str, tier: Counting) -> Counting:
    """A tier with that tree in it."""
    pusher = Pusher(store, tier, timing=HURRIED)
    pusher.push_tree(tree_id)
    pusher.close()
    tier.asked.clear()
    return tier


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another machine's store, with nothing in it."""
    return Store(tmp_path / "other")


@pytest.fixture
def other_lease(other: Store) -> Iterator[Lease]:
    with other.lease("test") as lease:
        yield lease
