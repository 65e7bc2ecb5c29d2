"""Content that this worker lacks, fetched from the server over the worker's own connection, and from other tiers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.content.attempts import TransientError
from farcall.content.room import Room
from farcall.content.tiers import Fetcher
from farcall.wire import cluster, messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory

if TYPE_CHECKING:
    from farcall.cluster.ends import LocalEnd
    from farcall.cluster.sharing import Sharing
    from farcall.content.lease import Lease
    from farcall.content.store import Store
    from farcall.content.tiers import Tier

_REST_SECONDS = 30.0  # after a container was asked for: its own files go before the rest of its image
_REST_THREADS = 2
_START_BYTES = 64 << 20  # of an image whose files come when they are opened, for which there has to be room
_NAMES = ("trees/", "indexes/")  # what is in a tree, and which parts belong to it, is for the server to say


class ServerTier:
    """The server's store, as far as this worker's containers need it. A connection that is cut is waited for, as long
    as the worker's lease holds."""

    title = "the server"

    def __init__(self, peer: LocalEnd, on_sharers: Callable[[cluster.Sharers], None]) -> None:
        self._peer = peer
        self._on_sharers = on_sharers
        self._loop = asyncio.get_running_loop()
        self._seq = 0
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._is_over = False
        peer.on_message = self._answered

    def get(self, name: str) -> bytes:
        """The blob of that name. Not for the event loop's thread."""
        try:
            return asyncio.run_coroutine_threadsafe(self._ask(name), self._loop).result()
        except errors.ConnectionError as error:
            if error.code != errors.ConnectionError.code:
                raise
            raise TransientError(errors.ConnectionError, str(error)) from None  # of a place that it asked itself

    def close(self) -> None:
        """Nothing comes any more."""
        self._is_over = True
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_over())
        self._asked.clear()

    async def _ask(self, name: str) -> bytes:
        if self._is_over:
            raise _over()
        self._seq += 1
        seq = self._seq
        future = self._asked[seq] = self._loop.create_future()
        self._peer.send(cluster.ReadContent(seq, name))
        try:
            return await future
        finally:
            self._asked.pop(seq, None)

    def _answered(self, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, cluster.Sharers):
            close_all(fds)
            self._on_sharers(message)
            return
        try:
            future = self._asked.get(message.seq) if isinstance(message, messages.Done | messages.Failed) else None
            if future is None or future.done():
                return
            if isinstance(message, messages.Failed):
                future.set_exception(errors.from_code(message.failure.code, message.failure.message))
            else:
                future.set_result(from_memory(fds[0]) if fds else message.body)
        finally:
            close_all(fds)


class Fetching:
    """What one lease's containers need: from other workers, from the object store that this machine has, and from the
    server."""

    def __init__(self, store: Store, room: Room, peer: LocalEnd, sharing: Sharing) -> None:
        self._store = store
        self._room = room
        self._tier = ServerTier(peer, sharing.told)
        self._sharing = sharing
        self._loop = asyncio.get_running_loop()
        names = _Only(self._tier, _NAMES)
        # Only images are in object stores. What is not there would be asked for in vain.
        self._images = Fetcher(store, [names, sharing.peers, *sharing.stores, self._tier], threads=_REST_THREADS)
        self._others = Fetcher(store, [names, sharing.peers, self._tier])
        self._rest = ThreadPoolExecutor(1, thread_name_prefix="rest")
        self._completing: dict[str, asyncio.TimerHandle] = {}
        sharing.begin(self._tier)

    async def need(self, lease: Lease, trees: Iterable[str], whose: str, root: str = "") -> None:
        """Returns when the store has these trees, and the names of an image's, which the lease keeps. Raises what keeps
        them from coming: ResourceExhaustedError, which says how much `whose` trees lack, where there is no room.

        The image's files come when they are opened, and the rest by and by.
        """
        run = self._loop.run_in_executor
        if root and await run(None, self._announce, lease, root, whose):
            self._complete_later(root)
        for tree_id in dict.fromkeys(trees):
            await run(None, self._fetch, lease, tree_id, whose)

    def close(self) -> None:
        """Nothing comes any more."""
        for timer in self._completing.values():
            timer.cancel()
        self._rest.shutdown(wait=False, cancel_futures=True)
        self._sharing.end()
        self._tier.close()
        for fetcher in (self._images, self._others):
            self._loop.run_in_executor(None, fetcher.close)

    def _fetch(self, lease: Lease, tree_id: str, whose: str) -> None:
        if not self._store.tree_path(tree_id).exists() or self._store.partial_path(tree_id).exists():
            self._make_room(tree_id, whose)
        try:
            self._others.fetch_tree(lease, tree_id)
        except errors.ResourceExhaustedError:  # somebody else has taken the room
            self._make_room(tree_id, whose)
            self._others.fetch_tree(lease, tree_id)
        self._room.use(tree_id)

    def _make_room(self, tree_id: str, whose: str) -> None:
        self._room.make(self._room.lacking(self._others.tree(tree_id)), f"the files of {whose}")

    def _announce(self, lease: Lease, tree_id: str, whose: str) -> bool:
        """Whether files of the tree are missing."""
        try:
            lease.keep_tree(tree_id)
        except errors.NotFoundError:
            self._room.make(0, f"the image of {whose}")
            lease.add_tree(self._images.tree(tree_id), partial=True)
        self._room.use(tree_id)
        if not self._store.partial_path(tree_id).exists():
            return False
        if not self._room.has(_START_BYTES):
            lacking = self._room.lacking(self._store.tree(tree_id))
            self._room.make(min(lacking, _START_BYTES), f"the image of {whose}")
        return True

    def _complete_later(self, tree_id: str) -> None:
        if tree_id not in self._completing:
            self._completing[tree_id] = self._loop.call_later(
                _REST_SECONDS, lambda: self._rest.submit(self._complete, tree_id)
            )

    def _complete(self, tree_id: str) -> None:
        """Fetch what nobody has opened: then containers start, and read, as if the image had been built here."""
        try:
            with self._store.lease("rest") as lease:
                lacking = self._room.lacking(self._images.tree(tree_id))
                if not self._room.has(lacking):  # nothing goes for what may never be wanted
                    raise errors.ResourceExhaustedError(f"{lacking:,} bytes have no room")
                self._images.fetch_tree(lease, tree_id)
        except errors.FarcallError as error:
            logging.getLogger("farcall.cluster").info("not all of image tree %s is here yet: %s", tree_id, error)
        finally:
            with suppress(RuntimeError):  # of a loop that is closed: the worker has ended
                # The next container that finds something missing tries again: it may have had to make room since.
                self._loop.call_soon_threadsafe(self._completing.pop, tree_id, None)


class _Only:
    """A tier for some of what it has."""

    def __init__(self, tier: Tier, kinds: tuple[str, ...]) -> None:
        self._tier = tier
        self._kinds = kinds

    @property
    def title(self) -> str:
        return self._tier.title

    def get(self, name: str) -> bytes:
        if not name.startswith(self._kinds):
            raise errors.NotFoundError(f"{self.title} is asked for {name} last")
        return self._tier.get(name)


def _over() -> errors.ConnectionLostError:
    return errors.ConnectionLostError("the server was lost while content came from it")
