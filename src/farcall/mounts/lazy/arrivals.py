"""Missing objects brought into the store, for those who wait for them in the kernel and for starts to come."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from farcall.content import profiles
from farcall.content.room import Room
from farcall.content.store import Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.layout import BLOB_BYTES, Pack
from farcall.errors import FarcallError, ResourceExhaustedError
from farcall.mounts.lazy.ahead import Ahead
from farcall.mounts.lazy.foresight import Foresight
from farcall.mounts.lazy.index import Wanted
from farcall.mounts.lazy.outages import Outages, errno_for
from farcall.mounts.lazy.packs import Packs
from farcall.mounts.lazy.parts import Parts
from farcall.mounts.lazy.threads import Threads

WHOLE_BYTES = BLOB_BYTES  # larger objects are in pieces, and read while they arrive
_AHEAD = 12  # blobs that a profile names on their way at the same time

_T = TypeVar("_T")


class Arrivals:
    """What is on its way. All methods belong to one event loop."""

    def __init__(
        self, store: Store, fetcher: Fetcher, exchange: profiles.Exchange, room: Room, outages: Outages
    ) -> None:
        self._store = store
        self._room = room
        self._exchange = exchange
        self._received: set[str] = set()  # trees whose profiles were looked for elsewhere
        self._known: set[str] = set()  # trees whose profiles say what starts open
        self._outages = outages
        self._threads = Threads(store)
        self._ahead = Ahead()
        self._packs = Packs(store, fetcher, self._threads, self._ahead)
        self._parts = Parts(store, fetcher, self._threads, self._ahead)
        self._foresight = Foresight(store, self._packs, self._parts, self._threads, self._ahead)
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self) -> None:
        """Somebody opens or reads something: what can wait waits."""
        self._packs.asked()

    def put(self, wanted: Wanted) -> bool:
        """Put an object into the store that is in memory; whether it was, and there was room for it. Raises what a
        `Lease` raises."""
        try:
            is_put = self._packs.put(wanted.digest)
        except ResourceExhaustedError:
            return False  # room is made for who brings it
        if is_put:
            self._foresee(wanted)
        return is_put

    async def bring(self, wanted: Wanted) -> None:
        """The object is in the store when this returns. Who is cancelled waits no more; the object comes all the same.

        Raises what a `Fetcher` raises.
        """
        is_known = wanted.tree_id in self._known
        self._foresee(wanted)
        await self._asked(wanted, lambda: self._packs.bring(wanted, is_start_known=is_known))

    def open(self, wanted: Wanted) -> None:
        """Somebody has opened a large object that is not here."""
        self._foresee(wanted)
        self._parts.open(wanted, is_start_known=wanted.tree_id in self._known)

    def at_hand(self, wanted: Wanted, offset: int, size: int) -> bytes | None:
        """Bytes of a large object that are here; None where `read` has to be asked."""
        return self._parts.at_hand(wanted, offset, size)

    async def read(self, wanted: Wanted, offset: int, size: int) -> bytes:
        """Bytes of a large object, which need not be here as a whole. Raises what a `Fetcher` raises."""
        is_known = wanted.tree_id in self._known
        return await self._asked(wanted, lambda: self._parts.read(wanted, offset, size, is_start_known=is_known))

    def cannot_open(self, wanted: Wanted, error: FarcallError) -> None:
        """What is here could not be opened for who asked for it."""
        self._outages.failed(wanted, error)

    def forget(self, wanted: Wanted) -> None:
        """Nobody has this large object open any more."""
        self._parts.forget(wanted)

    def begin_start(self, tree_id: str) -> None:
        """Begin to bring what earlier starts from this tree have opened, in that order, here or on other machines."""
        self._spawn(self._fetch_profile(tree_id))

    def send_profiles(self, tree_ids: Sequence[str]) -> None:
        """Begin to tell other machines what starts from these trees have opened."""
        for tree_id in tree_ids:
            self._threads.run(lambda tree_id=tree_id: self._exchange.send(tree_id))

    def keep_house(self) -> None:
        """To be called from time to time."""
        self._packs.keep_house()
        self._threads.renew()

    # --- profiles

    async def _fetch_profile(self, tree_id: str) -> None:
        with suppress(FarcallError):  # who opens a file hears why
            looked_up = self._packs.look_up(tree_id)
            if tree_id not in self._received:
                self._received.add(tree_id)
                await self._threads.run(lambda: self._exchange.receive(tree_id))
            profile = await self._threads.run(lambda: profiles.read(self._store, tree_id))
            if not profile.opened:
                self._foresight.begin_start(tree_id)
                return
            self._known.add(tree_id)
            self._packs.set_own(tree_id, profile.packs)
            await self._fetch_ahead(tree_id, profile, (await looked_up).located.packs)

    async def _fetch_ahead(self, tree_id: str, profile: profiles.Profile, packs: dict[bytes, Pack]) -> None:
        """Bring what a profile names, in its order. The first failure ends it."""
        own = {digest: pack for pack in profile.packs for digest, _, _ in pack.objects()}
        named: dict[int, list[bytes]] = {}  # by the packs that have them
        jobs: list[Callable[[], Awaitable[object]]] = []
        for digest, piece in profile.opened:
            if self._store.has(digest):
                continue
            if piece != profiles.WHOLE:
                jobs.append(partial(self._parts.fetch, Wanted(digest, 0, tree_id, b""), piece))
            elif (pack := own.get(digest) or packs.get(digest)) is not None:
                if id(pack) not in named:
                    named[id(pack)] = []
                    if digest in own:
                        jobs.append(partial(self._packs.fetch, tree_id, pack, whole=True))
                    else:
                        jobs.append(partial(self._packs.put_named, tree_id, pack, named[id(pack)]))
                named[id(pack)].append(digest)
        await _side_by_side(jobs, self._outages.worked)

    def _foresee(self, wanted: Wanted) -> None:
        if wanted.tree_id not in self._known:
            self._foresight.opened(wanted)

    async def _asked(self, wanted: Wanted, work: Callable[[], Awaitable[_T]]) -> _T:
        """Somebody waits for this: where it lacks room, that is made; whether it works is told."""
        try:
            try:
                with self._ahead.waiting():
                    result = await work()
            except ResourceExhaustedError as error:
                if errno_for(error) != errno.ENOSPC:
                    raise  # no room on the disk would help
                await self._threads.run(lambda: self._room.make(min(wanted.size, WHOLE_BYTES), wanted.title))
                result = await work()
        except FarcallError as error:
            self._outages.failed(wanted, error)
            raise
        self._outages.worked()
        return result

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _side_by_side(jobs: Iterable[Callable[[], Awaitable[object]]], done: Callable[[], None]) -> None:
    """Some at a time, begun in their order; `done` is called after each.

    Raises what the first one that fails raises, and begins no further ones.
    """
    room = asyncio.Semaphore(_AHEAD)
    failed = asyncio.Event()

    async def do(job: Callable[[], Awaitable[object]]) -> None:
        try:
            await job()
            done()
        except BaseException:
            failed.set()
            raise
        finally:
            room.release()

    under_way: list[asyncio.Task[None]] = []
    for job in jobs:
        await room.acquire()
        if failed.is_set():
            break
        under_way.append(asyncio.create_task(do(job)))
    await asyncio.gather(*under_way)
