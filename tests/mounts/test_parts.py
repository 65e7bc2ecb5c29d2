"""Large objects that arrive in pieces: what stays open of them."""

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from farcall.content import Entry, Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.directory import DirectoryTier
from farcall.content.tiers.layout import BLOB_BYTES
from farcall.content.tiers.pusher import Pusher
from farcall.mounts.lazy import parts as parts_module
from farcall.mounts.lazy.ahead import Ahead
from farcall.mounts.lazy.index import Wanted
from farcall.mounts.lazy.parts import Parts
from farcall.mounts.lazy.threads import Threads

FILES = 6


def open_parts(store: Store) -> int:
    """How many files of objects that have not arrived this process has open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{store.root}/downloads/")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def far(tmp_path: Path, rng: random.Random) -> tuple[Store, Fetcher, list[Wanted]]:
    """A store without them, and large files that are elsewhere."""
    source, tier = Store(tmp_path / "source"), DirectoryTier(tmp_path / "tier")
    entries: list[Entry] = []
    with source.lease("test") as lease:
        for number in range(FILES):
            data = rng.randbytes(3 * BLOB_BYTES)
            entries.append(Entry(b"%d" % number, 0o100644, size=len(data), digest=lease.add_bytes(data)))
        tree_id = lease.add_tree(entries)
        Pusher(source, tier).push_tree(tree_id)
    store = Store(tmp_path / "store")
    wanted = [Wanted(entry.digest, entry.size, tree_id, entry.path) for entry in entries]
    return store, Fetcher(store, [tier]), wanted


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_files_that_nobody_has_open_do_not_stay_open_here(
    far: tuple[Store, Fetcher, list[Wanted]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of which a start profile names a piece, nor what arrives when its reader is gone. One such process
    serves all images of a store, for months."""
    monkeypatch.setattr(parts_module, "MOST_UNOPENED", 2)
    store, fetcher, files = far

    async def test() -> None:
        threads = Threads(store)
        parts = Parts(store, fetcher, threads, Ahead())
        for wanted in files[: FILES - 2]:
            await parts.fetch(wanted, 1)
        assert open_parts(store) == 2, "of those that were fetched last, who may be opened next"
        read, kept = files[-2:]
        for wanted in (read, kept):
            parts.open(wanted, is_start_known=True)
            assert len(await parts.read(wanted, 0, 1000, is_start_known=False)) == 1000
        parts.forget(read)
        await settled(lambda: not parts._coming)
        for wanted in files[: FILES - 2]:
            await parts.fetch(wanted, 0)
        assert parts.at_hand(kept, 0, 1000) is not None, "what somebody has open stays"
        assert open_parts(store) == 3
        parts.forget(kept)
        threads.close()

    asyncio.run(test())
    fetcher.close()
