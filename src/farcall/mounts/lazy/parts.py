"""Large objects: they arrive in pieces, and are read before they are whole."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.content.tiers import Fetcher
from farcall.content.tiers.layout import BLOB_BYTES
from farcall.content.tiers.partial import part_path
from farcall.mounts.lazy.ahead import Ahead
from farcall.mounts.lazy.index import Wanted
from farcall.mounts.lazy.threads import Threads

_MOST_AHEAD = 4  # pieces behind one that was asked for
_JUMPS = 4  # pieces here and there, for one more that is fetched ahead from each
MOST_UNOPENED = 64  # large objects of which something is kept open here though nobody has them open


@dataclass
class _Part:
    """A large object that arrives: its file, open, and the pieces that are there for certain."""

    is_open: bool = False  # by somebody, who will say when that is over
    file: int = -1
    pieces: set[int] = field(default_factory=set[int])
    ahead: dict[int, int] = field(default_factory=dict[int, int])  # pieces that were asked for, or fetched ahead: how
    # many to fetch ahead from there
    jumps: int = 0  # how often a piece was asked for that was not fetched ahead


class Parts:
    """Pieces on their way, and here. All methods belong to one event loop."""

    def __init__(self, store: Store, fetcher: Fetcher, threads: Threads, ahead: Ahead) -> None:
        self._store = store
        self._fetcher = fetcher
        self._threads = threads
        self._ahead = ahead
        self._coming: dict[tuple[bytes, int], asyncio.Future[None]] = {}
        self._parts: dict[bytes, _Part] = {}

    def has(self, wanted: Wanted, number: int) -> bool:
        """Whether a piece is known to be here."""
        part = self._parts.get(wanted.digest)
        return part is not None and number in part.pieces

    def at_hand(self, wanted: Wanted, offset: int, size: int) -> bytes | None:
        """Bytes of pieces that are here; None where `read` has to be asked."""
        part = self._parts.get(wanted.digest)
        if part is None or part.file < 0 or not part.pieces.issuperset(pieces(offset, size)):
            return None
        data = os.pread(part.file, size, offset)
        return data if len(data) == size else None  # else it was found damaged, and begins anew

    async def read(self, wanted: Wanted, offset: int, size: int, *, is_start_known: bool) -> bytes:
        """Bytes of an object, which need not be here as a whole. Who is cancelled waits no more; they come even so.

        What lies behind comes, too: where it is not known what this start reads, or it is read from front to back.
        Raises what a `Fetcher` raises.
        """
        wanted_pieces = pieces(offset, size)
        await asyncio.shield(asyncio.gather(*[self.fetch(wanted, number) for number in wanted_pieces]))
        # Not earlier: who waits would share the line with it.
        self._fetch_behind(wanted, wanted_pieces[-1], is_start_known)
        data = self.at_hand(wanted, offset, size)
        if data is not None:
            return data
        return await self._threads.run_leased(
            lambda lease: self._fetcher.read(lease, wanted.tree_id, wanted.digest, offset, size)
        )

    def fetch(self, wanted: Wanted, number: int) -> asyncio.Future[None]:
        """Begin to fetch a piece, unless it is on its way."""
        key = wanted.digest, number
        coming = self._coming.get(key)
        if coming is None:

            def fetch(lease: Lease) -> None:
                self._fetcher.read(lease, wanted.tree_id, wanted.digest, number * BLOB_BYTES, 1)

            coming = self._coming[key] = self._threads.run_leased(fetch)
            coming.add_done_callback(lambda done: self._came(wanted, number, done))
        return coming

    def open(self, wanted: Wanted, *, is_start_known: bool) -> None:
        """Somebody has it open. What is read first of most files is their beginning and their end."""
        known = self._parts.get(wanted.digest)
        if known is not None:
            known.is_open = True
            return
        self._parts[wanted.digest] = _Part(is_open=True)
        if not is_start_known:
            self.fetch(wanted, 0)
            self.fetch(wanted, (wanted.size - 1) // BLOB_BYTES)

    def forget(self, wanted: Wanted) -> None:
        """Nobody has this object open any more."""
        self._forget(wanted.digest)

    def _forget(self, digest: bytes) -> None:
        part = self._parts.pop(digest, None)
        if part is not None and part.file >= 0:
            os.close(part.file)

    def _part(self, digest: bytes) -> _Part:
        """What is known of an object. Of those that nobody has open, which were fetched ahead or whose reader is gone,
        the ones that came first are forgotten: each has a descriptor, and keeps its bytes on the disk."""
        part = self._parts.setdefault(digest, _Part())
        if not part.is_open:
            others = [one for one, other in self._parts.items() if not other.is_open and other is not part]
            for one in others[: max(0, len(others) + 1 - MOST_UNOPENED)]:
                self._forget(one)
        return part

    def _came(self, wanted: Wanted, number: int, done: asyncio.Future[None]) -> None:
        del self._coming[wanted.digest, number]
        if done.cancelled() or done.exception() is not None:
            return
        if self._store.has(wanted.digest):  # it is read from there
            self.forget(wanted)
            return
        part = self._part(wanted.digest)
        if part.file < 0:
            try:
                part.file = os.open(part_path(self._store, wanted.digest), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return
        part.pieces.add(number)

    def _fetch_behind(self, wanted: Wanted, number: int, is_start_known: bool) -> None:
        """Fetch what lies behind a piece: the more, the longer it is read from front to back, and the more of it was
        read here and there."""
        part = self._part(wanted.digest)
        if number in part.ahead:
            count = 2 * part.ahead[number]
        else:
            part.jumps += 1
            count = 0 if is_start_known else 1 + part.jumps // _JUMPS
        count = min(_MOST_AHEAD, count or number - 1 in part.ahead)
        last = (wanted.size - 1) // BLOB_BYTES
        for behind in range(number + 1, min(number + count, last) + 1):
            if behind not in part.ahead:
                part.ahead[behind] = count
                self._ahead.add(lambda behind=behind: self.fetch(wanted, behind))
        part.ahead[number] = count


def pieces(offset: int, size: int) -> range:
    """The numbers of the pieces that have these bytes."""
    return range(offset // BLOB_BYTES, (offset + size - 1) // BLOB_BYTES + 1)
