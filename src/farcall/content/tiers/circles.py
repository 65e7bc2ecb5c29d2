"""Which machines may have which trees: the server says so, and machines give content to no others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from farcall.content import profiles
from farcall.content.store import Store
from farcall.content.tiers import layout
from farcall.content.tiers.layout import Index
from farcall.errors import FarcallError


class Peer(NamedTuple):
    """A machine: the same name everywhere, which its certificate has, and where it listens; port 0 for nowhere."""

    name: str
    host: str
    port: int


class Circle(NamedTuple):
    """Those that may have one tree. `in_stores` says that object stores may have it, too."""

    peers: tuple[Peer, ...]
    in_stores: bool


class Circles:
    """The circles that this machine is in. Any number of threads may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._circles: dict[str, Circle] = {}
        self._named: dict[str, frozenset[str]] = {}  # by a tree's index
        self._profiles: dict[str, tuple[int, frozenset[str]]] = {}  # by its start profile, which changes

    def set(self, tree_id: str, circle: Circle) -> None:
        """These may have the tree, and nobody else; nobody at all where there are none."""
        with self._changed:
            if circle.peers:
                self._circles[tree_id] = circle
            else:
                self._circles.pop(tree_id, None)
                self._named.pop(tree_id, None)
                self._profiles.pop(tree_id, None)
            self._changed.notify_all()

    def clear(self) -> None:
        """This machine is in none any more."""
        with self._changed:
            self._circles.clear()
            self._named.clear()
            self._profiles.clear()
            self._changed.notify_all()

    def get(self, tree_id: str) -> Circle | None:
        """The circle of a tree."""
        return self._circles.get(tree_id)

    def members(self) -> set[Peer]:
        """All that are in a circle with this machine, and itself."""
        return {peer for circle in list(self._circles.values()) for peer in circle.peers}

    def find(self, name: str) -> str:
        """A tree of a circle that a blob is of, as the store knows; "" for none."""
        return next((tree_id for tree_id in list(self._circles) if self.has(tree_id, name)), "")

    def admits(self, name: str, tree_id: str, seconds: float) -> bool:
        """Whether that machine may have the tree. Waits `seconds` at most to be told that it may: both ends hear of it
        at about the same time."""
        with self._changed:
            return self._changed.wait_for(lambda: _has(self._circles.get(tree_id), name), seconds)

    def knows(self, name: str, seconds: float) -> bool:
        """Whether that machine may have anything that this one has. Waits as `admits` does."""
        with self._changed:
            return self._changed.wait_for(lambda: any(_has(one, name) for one in self._circles.values()), seconds)

    def has(self, tree_id: str, name: str, find: Callable[[str], Index | None] | None = None) -> bool:
        """Whether a pack or piece is of a tree: its index names it, which `find` may know where the store does not, or
        its start profile, and then all that is in it is of the tree."""
        named = self._named.get(tree_id, frozenset())
        if not named:
            index = layout.stored_index(self._store, tree_id)
            if index is None and find is not None:
                index = find(tree_id)
            if index is not None:
                named = self._keep(tree_id, frozenset(index.names()))
        if name in named:
            return True
        return name in self._profiled(tree_id)

    def _profiled(self, tree_id: str) -> frozenset[str]:
        """The packs of a start profile, as it is now."""
        try:
            changed = os.stat(profiles.path_of(self._store, tree_id)).st_mtime_ns
        except OSError:
            return frozenset()
        known = self._profiles.get(tree_id)
        if known is None or known[0] != changed:
            try:
                packs = profiles.packs_within(self._store, tree_id)
            except FarcallError:
                return frozenset()  # the tree is not here
            known = self._profiles[tree_id] = changed, frozenset(pack.name for pack in packs)
        return known[1]

    def _keep(self, tree_id: str, named: frozenset[str]) -> frozenset[str]:
        with self._changed:
            if tree_id in self._circles:
                self._named[tree_id] = named
        return named


def _has(circle: Circle | None, name: str) -> bool:
    return circle is not None and any(peer.name == name for peer in circle.peers)
