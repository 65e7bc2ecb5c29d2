"""Small objects: they arrive in packs, and are put into the store as they are opened.

What else is in a pack waits in memory. So a start writes no files that it does not open, and which ones it does is
seen, since the kernel asks for each. The others are put into the store when nothing was asked for a moment.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass

from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.layout import Located, Pack
from farcall.content.tiers.unpacked import Unpacked
from farcall.errors import FarcallError
from farcall.mounts.lazy import recent
from farcall.mounts.lazy.ahead import Ahead
from farcall.mounts.lazy.index import Wanted
from farcall.mounts.lazy.recent import Recent
from farcall.mounts.lazy.threads import Threads

_QUIET_SECONDS = 1.0  # without a question, after which what is in memory is put into the store
_MOST_BYTES = 256 << 20  # of packs in memory
_MOST_AHEAD = 4  # packs behind one that was asked for
_JUMPS = 8  # packs here and there, for one more that is fetched ahead from each


@dataclass
class _Tree:
    """Where the objects of a tree are, and in which order its packs are there."""

    located: Located
    packs: list[Pack]
    places: dict[str, int]  # by name
    ahead: dict[int, int]  # places that were asked for, or fetched ahead: how many to fetch ahead from there
    jumps: int = 0  # how often one was asked for that was not fetched ahead


class Packs:
    """Packs on their way, and in memory. All methods belong to one event loop."""

    def __init__(self, store: Store, fetcher: Fetcher, threads: Threads, ahead: Ahead) -> None:
        self._store = store
        self._fetcher = fetcher
        self._threads = threads
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._trees = Recent[_Tree](lambda tree_id: threads.run(lambda: _ordered(fetcher.locate(tree_id))))
        self._own: OrderedDict[str, dict[bytes, Pack]] = OrderedDict()  # packs of trees' profiles, by what is in them
        self._coming: dict[str, asyncio.Future[Unpacked]] = {}
        self._here: OrderedDict[str, Unpacked] = OrderedDict()
        self._left: dict[bytes, Unpacked] = {}  # by what is in them
        self._spreading: set[str] = set()
        self._asked_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self) -> None:
        """Somebody opens or reads something: what is in memory stays there for a while."""
        self._asked_at = self._loop.time()

    def put(self, digest: bytes) -> bool:
        """Put an object into the store that is in memory; whether it was. Raises what `Lease` raises."""
        unpacked = self._left.get(digest)
        if unpacked is None:
            return False
        with self._threads.lease() as lease:
            was_left = unpacked.put(lease, digest)
        del self._left[digest]
        return was_left

    async def bring(self, wanted: Wanted, *, is_start_known: bool) -> None:
        """The object is in the store when this returns. Who is cancelled waits no more; it comes all the same.

        Where it is not known what this start opens, the packs behind it come, too. Raises what a `Fetcher` raises.
        """
        if self.put(wanted.digest):
            return
        own = self._own.get(wanted.tree_id, {}).get(wanted.digest)
        if own is not None:
            with suppress(FarcallError):  # the tree's own packs have it, too
                await asyncio.shield(self.fetch(wanted.tree_id, own, whole=True))
                if self._store.has(wanted.digest):
                    return
        tree = await self.look_up(wanted.tree_id)
        pack = tree.located.packs.get(wanted.digest)
        if pack is None:  # the index does not say, or an object that is large
            await self._threads.run_leased(
                lambda lease: self._fetcher.fetch_objects(lease, wanted.tree_id, {wanted.digest})
            )
            return
        place = tree.places[pack.name]
        await asyncio.shield(self.fetch(wanted.tree_id, pack))
        self.put(wanted.digest)
        if not is_start_known:  # and not earlier: who waits would share the line with it
            self._fetch_behind(wanted.tree_id, tree, place)

    def look_up(self, tree_id: str) -> asyncio.Future[_Tree]:
        """Where a tree's objects are. Raises what a `Fetcher` raises."""
        return self._trees.get(tree_id)

    def set_own(self, tree_id: str, packs: Iterable[Pack]) -> None:
        """Packs that a tree's profile has of its own: who asks for what is in them gets it from them."""
        self._own[tree_id] = {digest: pack for pack in packs for digest, _, _ in pack.objects()}
        self._own.move_to_end(tree_id)
        while len(self._own) > recent.MOST:
            self._own.popitem(last=False)

    def fetch(self, tree_id: str, pack: Pack, *, whole: bool = False) -> asyncio.Future[Unpacked]:
        """Begin to fetch a pack, unless it is on its way. A `whole` one's objects are put into the store at once."""
        name = pack.name
        coming = self._coming.get(name)
        if coming is None:

            def fetch(lease: Lease) -> Unpacked:
                unpacked = self._fetcher.unpack(lease, tree_id, pack)
                if whole:
                    unpacked.put_all(lease)
                return unpacked

            coming = self._coming[name] = self._threads.run_leased(fetch)
            coming.add_done_callback(lambda done: self._came(name, done))
        return coming

    def fetch_ahead(self, tree_id: str, pack: Pack) -> asyncio.Future[None]:
        """Fetch a pack when there is room on the line, unless it was fetched."""

        async def fetch() -> None:
            if pack.name not in self._here:
                await self.fetch(tree_id, pack)

        return self._ahead.add(fetch)

    def peek(self, digest: bytes, offset: int, size: int) -> bytes | None:
        """Bytes of an object that is in memory; None where it is not."""
        unpacked = self._left.get(digest)
        return None if unpacked is None else unpacked.read(digest, offset, size)

    async def put_named(self, tree_id: str, pack: Pack, digests: Collection[bytes]) -> None:
        """These objects of a pack are in the store when this returns. Raises what a `Fetcher` raises."""
        unpacked = self._here.get(pack.name) or await asyncio.shield(self.fetch(tree_id, pack))

        def put(lease: Lease) -> None:
            for digest in digests:
                unpacked.put(lease, digest)

        await self._threads.run_leased(put)

    def keep_house(self) -> None:
        """Put what is in memory into the store, if nothing was asked for a moment. To be called from time to time."""
        if self._here and not self._spreading and self._loop.time() - self._asked_at > _QUIET_SECONDS:
            self._spawn(self._spread_all())

    # --- inside

    def _came(self, name: str, done: asyncio.Future[Unpacked]) -> None:
        del self._coming[name]
        if done.cancelled() or done.exception() is not None:
            return
        unpacked = done.result()
        if not len(unpacked):
            return
        self._here[name] = unpacked
        self._left.update(dict.fromkeys(unpacked, unpacked))
        held = sum(one.size for name, one in self._here.items() if name not in self._spreading)
        for oldest in [name for name in self._here if name not in self._spreading]:
            if held <= _MOST_BYTES:
                break
            held -= self._here[oldest].size
            self._spawn(self._spread(oldest))

    def _fetch_behind(self, tree_id: str, tree: _Tree, place: int) -> None:
        """Fetch what lies behind: the more, the longer it is read from front to back, and the more was read here and
        there."""
        if place in tree.ahead:
            count = 2 * tree.ahead[place]
        else:
            tree.jumps += 1
            count = 1 + tree.jumps // _JUMPS
        count = min(_MOST_AHEAD, count)
        for behind in range(place + 1, min(place + 1 + count, len(tree.packs))):
            if behind not in tree.ahead:
                tree.ahead[behind] = count
                self.fetch_ahead(tree_id, tree.packs[behind])
        tree.ahead[place] = count

    async def _spread_all(self) -> None:
        while self._here and self._loop.time() - self._asked_at > _QUIET_SECONDS:
            await self._spread(next(iter(self._here)))

    async def _spread(self, name: str) -> None:
        """Put what is left of a pack into the store, and forget it."""
        unpacked = self._here[name]
        self._spreading.add(name)
        with suppress(FarcallError):  # a full disk: who opens one of them hears of it
            await self._threads.run_leased(unpacked.put_all)
        self._spreading.discard(name)
        if self._here.get(name) is unpacked:
            del self._here[name]
        for digest in [digest for digest, one in self._left.items() if one is unpacked]:
            del self._left[digest]

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ordered(located: Located) -> _Tree:
    packs = list({id(pack): pack for pack in located.packs.values()}.values())
    return _Tree(located, packs, {pack.name: place for place, pack in enumerate(packs)}, {})
