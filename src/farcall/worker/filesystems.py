"""What containers are mounted from: trees of the content store, kept there for as long as a container uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.spec.container import Interpreter, TreeMount
from farcall.spec.function import TreeRef

Prepare = Callable[[Lease, str], Awaitable[TreeMount]]  # a tree, by its id, becomes ready; the lease keeps it


class Key(NamedTuple):
    """A set of trees: the root's id, "" for the host's system, and the others."""

    root: str
    trees: tuple[TreeRef, ...]


class Root(NamedTuple):
    """A built image, as far as a container needs it."""

    tree: str
    interpreter: Interpreter
    env: dict[str, str]
    workdir: str
    entrypoint: tuple[str, ...]


class Mounted(NamedTuple):
    """The trees of one container: its root, None for the host's system, and the others. `key` names the set of them."""

    key: Key
    root: TreeMount | None
    trees: tuple[TreeMount, ...]


class _Held:
    """A set of trees that containers use, kept by one lease for all of these containers."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.users = 0
        self.mounted: asyncio.Future[Mounted] | None = None


class Filesystems:
    """The trees that the containers of one worker use. All methods belong to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[Key, _Held] = {}

    async def take(self, root: Root | None, trees: Sequence[TreeRef], prepare: Prepare) -> Mounted:
        """What a container of this root and these trees is mounted from, until it is given back; `prepare` makes trees
        ready.

        Raises NotFoundError for a tree that is not in the store (any more), and what `prepare` raises.
        """
        key = Key(root.tree if root else "", tuple(trees))
        if not key.root and not key.trees:
            return Mounted(key, None, ())
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held(self._store.lease("containers"))
        held.users += 1
        try:
            if held.mounted is None:
                held.mounted = asyncio.ensure_future(_mounted(held.lease, key, prepare))
            return await asyncio.shield(held.mounted)
        except BaseException:
            held.mounted = None  # the next container tries again
            self._release(key)
            raise

    def give_back(self, mounted: Mounted) -> None:
        """A container is gone."""
        self._release(mounted.key)

    def _release(self, key: Key) -> None:
        held = self._held.get(key)
        if held is None:
            return
        held.users -= 1
        if held.users == 0:
            del self._held[key]
            held.lease.close()


async def _mounted(lease: Lease, key: Key, prepare: Prepare) -> Mounted:
    trees = [
        msgspec.structs.replace(
            await prepare(lease, tree.tree_id),
            target=tree.target,
            subpath=tree.path,
            writable=tree.writable,
            written_at=tree.written_at,
        )
        for tree in key.trees
    ]
    return Mounted(key, await prepare(lease, key.root) if key.root else None, tuple(trees))
