"""A store whose trees are read once: several of those who begin a start want the same tree at the same moment."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from farcall.content.store import Store
from farcall.content.tree import Tree

_MOST_TREES = 4


class Remembering(Store):
    """A store that keeps the trees in memory which it was asked for last. Any number of threads may use it at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lock = threading.Lock()
        self._trees: OrderedDict[str, Tree] = OrderedDict()

    def tree(self, tree_id: str) -> Tree:
        """As `Store.tree`; one that was read before is not checked again."""
        with self._lock:  # who wants it meanwhile waits for it, and not for the processor
            tree = self._trees.get(tree_id)
            if tree is None:
                tree = self._trees[tree_id] = super().tree(tree_id)
                while len(self._trees) > _MOST_TREES:
                    self._trees.popitem(last=False)
            self._trees.move_to_end(tree_id)
            return tree
