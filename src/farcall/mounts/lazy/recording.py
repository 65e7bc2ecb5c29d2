"""What starts open is written down, for the profiles of the trees that they start from."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from farcall.content import profiles
from farcall.content.store import Store
from farcall.errors import FarcallError

START_SECONDS = 60.0  # after the start of a container: what it opens later is no matter of its start
_QUIET_SECONDS = 1.0  # without anything new, after which a profile is written


@dataclass
class _Recording:
    objects: set[bytes]  # of the tree
    until: float
    opened: dict[tuple[bytes, int], None] = field(default_factory=dict[tuple[bytes, int], None])
    changed: float | None = None  # when it last was, since it was written


class Recordings:
    """The starts of the last minute. Belongs to one thread."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._by_tree: dict[str, _Recording] = {}

    def begin(self, tree_id: str) -> None:
        """A container starts from this tree."""
        until = self._clock() + START_SECONDS
        if known := self._by_tree.get(tree_id):
            known.until = until
            return
        with suppress(FarcallError):
            self._by_tree[tree_id] = _Recording(self._store.tree(tree_id).digests(), until)

    def opened(self, digest: bytes, piece: int = profiles.WHOLE) -> None:
        """A container has opened this object, or read that piece of it: one of those that start from a tree that names
        it, is the guess."""
        now = self._clock()
        one = digest, piece
        for recording in self._by_tree.values():
            if now < recording.until and digest in recording.objects and one not in recording.opened:
                recording.opened[one] = None
                recording.changed = now

    def write(self, *, all_of_them: bool = False) -> list[str]:
        """Write the profiles of which nothing new was seen for a moment; returns the trees whose profiles say more now.

        A full disk is no matter: a profile is a hint.
        """
        written: list[str] = []
        now = self._clock()
        for tree_id, recording in list(self._by_tree.items()):
            if recording.changed is not None and (all_of_them or now - recording.changed > _QUIET_SECONDS):
                recording.changed = None
                with suppress(FarcallError):
                    if profiles.add(self._store, tree_id, recording.opened):
                        written.append(tree_id)
            if now > recording.until and recording.changed is None:
                del self._by_tree[tree_id]
        return written
