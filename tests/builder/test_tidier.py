"""When the store is tidied, by real jobs."""

import asyncio
import shutil
from pathlib import Path

from farcall.builder.tidier import PAUSE, Tidier
from farcall.content import Lease, Store, Tree
from farcall.content.tree import Entry


def where(lease: Lease) -> tuple[str, str, int]:
    return str(lease.store.root), lease.id, 0


def forgotten(store: Store, text: str) -> str:
    """A tree that nobody keeps."""
    with store.lease("test") as lease:
        return lease.add_tree(Tree.of([Entry(text.encode(), 0o120777, target=b"nowhere")]))


def test_tidies_when_it_is_worth_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    async def run() -> None:
        tidier = Tidier(store, where)
        tree = store.tree_path(forgotten(store, "one"))
        store.dead.add(tidier.allowance)
        tidier.check()
        await tidier.settle()
        assert tree.exists() and store.dead.get() != 0, "as much as is allowed"
        store.dead.add(1)
        tidier.check()
        await tidier.settle()
        assert not tree.exists()
        await tidier.close()
        store.dead.add(2 * tidier.allowance)
        tidier.check()
        await tidier.tidy()
        assert store.dead.get() > 0, "nothing begins after its end"

    asyncio.run(asyncio.wait_for(run(), 60))


def test_pauses_in_proportion(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.01  # passes with every look at it
        return now

    async def run() -> None:
        tidier = Tidier(store, where, clock)
        await tidier.tidy()  # took 10 ms
        store.dead.add(2 * tidier.allowance)
        began = asyncio.get_running_loop().time()
        tidier.check()
        await tidier.settle()
        assert asyncio.get_running_loop().time() - began >= 0.01 * (PAUSE - 3)
        await tidier.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_store_that_cannot_be_tidied_is_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    async def run() -> None:
        tidier = Tidier(store, where)
        tree = store.tree_path(forgotten(store, "two"))
        record = tmp_path / "store/records/odd/one"
        record.parent.mkdir()
        record.write_bytes(b"damaged")
        await tidier.tidy()
        assert tree.exists(), "nobody knows what must stay"
        shutil.rmtree(record.parent)
        await asyncio.gather(tidier.tidy(), tidier.tidy())
        assert not tree.exists()
        await tidier.close()

    asyncio.run(asyncio.wait_for(run(), 60))
