"""What was built on other machines, and is found in an object store by the keys that builds here use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from farcall import errors
from farcall.builder.job import run_job
from farcall.builder.pushing import waiting
from farcall.builder.requests import FetchTrees, Push
from farcall.builder.shared import Say
from farcall.content.attempts import Timing
from farcall.content.lease import Lease
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tiers import Fetcher, WritableTier
from farcall.content.tree import Tree
from farcall.mounts.lazy.sources import Source, set_sources

_BRIEFLY = Timing(connect=3.0, read=5.0, attempts=2)  # a build does not wait long to hear that nobody answers
_PAUSE = 30.0  # seconds without asking a store that did not answer
_PUSH_AGAIN = 60.0  # seconds after which a push that failed is tried again


class Elsewhere:
    """The tier that this machine's builds share with other machines'. All methods belong to one event loop."""

    def __init__(self, store: Store, place: str, endpoint: str) -> None:
        """`place` is as `open_place` takes it; "" for none: then nothing is found, and nothing is pushed.

        Raises InvalidError for what is no place.
        """
        self._store = store
        self._place = place
        self._endpoint = endpoint
        self._tier: WritableTier | None = None
        self._fetcher: Fetcher | None = None
        if place:
            from farcall.content.tiers.places import open_place

            self._tier = open_place(place, endpoint, _BRIEFLY)
            self._fetcher = Fetcher(store, [self._tier], timing=_BRIEFLY, threads=1)
            set_sources(store, [Source(place, endpoint)])
        self._silent_until = 0.0
        self._pushing: asyncio.Task[None] | None = None
        self._more = False
        self._is_pushing = False
        self._is_closed = False
        self._log = logging.getLogger("farcall.builder")

    @property
    def is_anywhere(self) -> bool:
        """Whether there is such a place."""
        return self._tier is not None

    @property
    def is_pushing(self) -> bool:
        """Whether something is on its way there: a push that failed, and waits to be tried again, is not."""
        return self._is_pushing

    async def record(self, kind: str, key: str, data: Any) -> Record | None:
        """A record there, whose data is of that type, or empty; None where there is none, or nobody answers: builds
        then do without."""
        record = await self._record(kind, key)
        if record is not None and record.data:
            try:
                msgspec.convert(record.data, data)
            except msgspec.ValidationError as error:
                self._log.warning("the record %s/%s of %s is not understood: %s", kind, key, self._place, error)
                return None
        return record

    async def _record(self, kind: str, key: str) -> Record | None:
        if self._fetcher is None or time.monotonic() < self._silent_until:
            return None
        try:
            return await asyncio.to_thread(self._fetcher.record, kind, key)
        except errors.FarcallError as error:
            self._silent_until = time.monotonic() + _PAUSE
            self._log.warning("builds go on without what is elsewhere: %s", error)
            return None

    async def tree(self, tree_id: str) -> Tree:
        """A tree, here or there. Raises as `Fetcher.tree`."""
        if self._fetcher is None or self._store.tree_path(tree_id).exists():
            return await asyncio.to_thread(self._store.tree, tree_id)
        return await asyncio.to_thread(self._fetcher.tree, tree_id)

    async def bring(self, lease: Lease, trees: Sequence[str], say: Say) -> None:
        """Trees are in the store, and kept by the lease, when this returns. Raises as `Fetcher.fetch_tree`."""
        missing: list[str] = []
        for tree_id in dict.fromkeys(trees):
            try:
                lease.keep_tree(tree_id)
                if self._store.missing(tree_id):
                    missing.append(tree_id)
            except errors.NotFoundError:
                if not self._place:
                    raise
                missing.append(tree_id)
        if missing:
            where = str(self._store.root), lease.id, 0
            await run_job(FetchTrees(*where, self._place, self._endpoint, tuple(missing)), type(None), say)
            for tree_id in missing:
                lease.keep_tree(tree_id)

    async def announce(self, lease: Lease, trees: Sequence[str]) -> None:
        """As `bring`, but what is missing comes when it is needed, or when mounts are prepared that cannot wait for it:
        a tree that is not here is partial then."""
        for tree_id in dict.fromkeys(trees):
            try:
                lease.keep_tree(tree_id)
            except errors.NotFoundError:
                tree = await self.tree(tree_id)
                await asyncio.to_thread(lease.add_tree, tree, partial=True)

    def push(self) -> None:
        """Push what was built, in the background, now and until all of it is there."""
        self._more = True
        if self._tier is not None and self._pushing is None and not self._is_closed:
            self._pushing = asyncio.ensure_future(self._push(self._tier))

    async def _push(self, tier: WritableTier) -> None:
        try:
            while self._more:
                self._more = False
                try:
                    await self._push_once(tier)
                except errors.FarcallError as error:
                    self._log.warning("what was built is not elsewhere yet: %s", error)
                    await asyncio.sleep(_PUSH_AGAIN)
                    self._more = True
        finally:
            self._pushing = None

    async def _push_once(self, tier: WritableTier) -> None:
        self._is_pushing = True
        try:
            if await asyncio.to_thread(waiting, self._store, tier):
                with self._store.lease("push") as lease:
                    await run_job(Push(str(self._store.root), lease.id, 0, self._place, self._endpoint), int)
        finally:
            self._is_pushing = False

    async def settle(self) -> None:
        """Returns when nothing is on its way there any more."""
        while self._pushing is not None:
            await asyncio.wait([self._pushing])

    async def close(self) -> None:
        """Ends what goes on in the background, and nothing begins any more; the next server goes on with it."""
        self._is_closed = True
        if self._pushing is not None:
            self._pushing.cancel()
            await asyncio.gather(self._pushing, return_exceptions=True)
        if self._fetcher is not None:
            await asyncio.to_thread(self._fetcher.close)
