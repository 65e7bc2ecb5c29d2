"""What containers are mounted from: trees of the content store, kept there for as long as a container uses them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from farcall.content import imports
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
        self._asked: set[tuple[str, str]] = set()  # trees and functions of which a container has been asked

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

    # --- what functions import from images

    def imports(self, mounted: Mounted, function: str) -> str:
        """The file that says what the function imports from the image; "" where there is none, or nothing to gain."""
        if not _is_laid_over(mounted):
            return ""
        path = imports.path_of(self._store, mounted.key.root, function)
        return path if os.path.exists(path) else ""

    def wants_imports(self, mounted: Mounted | None, function: str) -> bool:
        """Whether a container should say what it imports: once for each function, and server."""
        if mounted is None or not _is_laid_over(mounted) or (mounted.key.root, function) in self._asked:
            return False
        self._asked.add((mounted.key.root, function))
        return True

    def keep_imports(self, mounted: Mounted, function: str, paths: Sequence[str]) -> None:
        """For the containers that come."""
        imports.write(self._store, mounted.key.root, function, paths)

    def _release(self, key: Key) -> None:
        held = self._held.get(key)
        if held is None:
            return
        held.users -= 1
        if held.users == 0:
            del self._held[key]
            held.lease.close()


def _is_laid_over(mounted: Mounted) -> bool:
    """Whether the root is one whose names each container looks up anew, and all of whose files are here."""
    return mounted.root is not None and mounted.root.kind == "erofs" and not mounted.root.is_lazy


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
