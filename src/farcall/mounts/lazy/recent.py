"""What was looked up of trees last."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

MOST = 8  # trees: of a large image some 10 MB are known, and a process serves all images of a store for months

_T = TypeVar("_T")


class Recent(Generic[_T]):
    """Something about each of a few trees, which is looked up again for one that was not asked about for long. All
    methods belong to one event loop."""

    def __init__(self, look_up: Callable[[str], asyncio.Future[_T]]) -> None:
        """`look_up` begins to find it out for a tree."""
        self._look_up = look_up
        self._found: OrderedDict[str, asyncio.Future[_T]] = OrderedDict()

    def get(self, tree_id: str) -> asyncio.Future[_T]:
        """What is known of the tree, or will be. Raises what `look_up` does; the next one who asks tries again."""
        found = self._found.get(tree_id)
        if found is None:
            found = self._found[tree_id] = self._look_up(tree_id)
            found.add_done_callback(lambda done: self._looked_up(tree_id, done))
        self._found.move_to_end(tree_id)
        while len(self._found) > MOST:
            self._found.popitem(last=False)
        return asyncio.shield(found)

    def _looked_up(self, tree_id: str, done: asyncio.Future[_T]) -> None:
        failed = done.cancelled() or done.exception() is not None
        if failed and self._found.get(tree_id) is done:
            del self._found[tree_id]
