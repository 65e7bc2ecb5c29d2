"""What is known of trees: of a few at a time, however many there are."""

import asyncio
import gc
import weakref

import pytest

from farcall.errors import ConnectionError
from farcall.mounts.lazy import recent
from farcall.mounts.lazy.recent import Recent


class Known:
    """Something large."""


def test_however_many_trees_are_served_a_few_are_remembered() -> None:
    looked_up: list[str] = []
    alive: weakref.WeakSet[Known] = weakref.WeakSet()

    async def look_up(tree_id: str) -> Known:
        looked_up.append(tree_id)
        known = Known()
        alive.add(known)
        return known

    async def test() -> None:
        trees = Recent[Known](lambda tree_id: asyncio.ensure_future(look_up(tree_id)))
        for number in range(10 * recent.MOST):
            await trees.get(f"tree-{number}")
            await trees.get("always")
        assert looked_up.count("always") == 1, "one that is used stays"
        gc.collect()
        assert len(alive) == recent.MOST
        await trees.get("tree-0")
        assert looked_up.count("tree-0") == 2

    asyncio.run(test())


def test_what_could_not_be_looked_up_is_tried_again() -> None:
    found: list[asyncio.Future[int]] = []

    async def test() -> None:
        def look_up(tree_id: str) -> asyncio.Future[int]:
            found.append(asyncio.get_running_loop().create_future())
            return found[-1]

        trees = Recent[int](look_up)
        first, second = trees.get("a"), trees.get("a")
        found[0].set_exception(ConnectionError("nobody answers"))
        for one in (first, second):
            with pytest.raises(ConnectionError):
                await one
        again = trees.get("a")
        found[1].set_result(1)
        assert await again == 1

    asyncio.run(test())
