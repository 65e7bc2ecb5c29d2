"""Fetching: what the local store lacks, from tiers in order, checked on arrival, once however many want it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from farcall.content.adding import entry_inode
from farcall.content.attempts import Attempts, StoppedError, Timing, TransientError
from farcall.content.disk import disk_error
from farcall.content.lease import Lease
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tiers import layout
from farcall.content.tiers.claims import claim
from farcall.content.tiers.layout import BLOB_BYTES, Large, Located, Pack, Piece
from farcall.content.tiers.partial import Partial
from farcall.content.tiers.tier import MAX_BLOB_BYTES, Tier
from farcall.content.tiers.unpacked import Unpacked
from farcall.content.tree import Entry, Tree
from farcall.errors import ConnectionError, CorruptedError, FarcallError, NotFoundError

THREADS = 12  # blobs on their way at once: some ten MiB of memory for each, and 200 MB/s at 200 ms for all
# A store that restarts is waited for: some 45 s in all.
TIMING = Timing(connect=5.0, read=15.0, attempts=12, longest_delay=5.0)
_KNOWN_TREES = 8  # whose entries and indexes are kept in memory

_T = TypeVar("_T")
Progress = Callable[[int], None]  # bytes of content that have arrived since the last call


@dataclass
class Fetched:
    """What was fetched."""

    blobs: int = 0
    """Blobs that arrived, of all kinds."""
    received_bytes: int = 0
    """Bytes of them on the way here: compressed, as a rule."""
    objects: int = 0
    """Objects that are in the store now and were not before."""
    object_bytes: int = 0
    """Bytes of them."""
    by_tier: dict[str, int] = field(default_factory=dict[str, int])
    """Of the received bytes, how many each tier sent, by its title."""


@dataclass
class _Known:
    """A tree that content was asked for, whose tree and index are at hand."""

    tree: Tree
    located: Located
    entries: dict[bytes, Entry]  # the first entry with each digest, from which the object has mode and time


class Fetcher:
    """Brings content into a store. Its methods block, and any number of threads may call them.

    Any number of fetchers, also of other processes, may work for one store: what one is fetching the others wait for.
    Errors of all methods: where no tier has something, `NotFoundError`; where one did not answer until patience was
    over, `ConnectionError` or `TimeoutError`; `CorruptedError` where what arrived was not what it should be, from
    wherever it came; what a tier says it will not do; and what `disk_error` says.
    """

    def __init__(self, store: Store, tiers: Sequence[Tier], *, timing: Timing = TIMING, threads: int = THREADS) -> None:
        """`tiers` are asked in this order, each time those that it has. `threads` blobs may be on their way at once."""
        self._store = store
        self._tiers = tiers
        self._timing = timing
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._total = Fetched()

    def close(self) -> None:
        """Ends what is going on: whoever waits for it gets a `ConnectionError`. Idempotent."""
        self._stop.set()
        self._pool.shutdown()

    def statistics(self) -> Fetched:
        """What was fetched so far, by all who asked."""
        with self._lock:
            return replace(self._total, by_tier=dict(self._total.by_tier))

    # --- what trees are found by

    def record(self, kind: str, key: str) -> Record | None:
        """The record as the first tier that has it has it, None where none has. It is not put into the store."""
        try:
            return self._get(layout.record_name(kind, key), partial(_open_record, kind, key))
        except NotFoundError:
            return None

    def tree(self, tree_id: str) -> Tree:
        """A tree, whether or not its objects are here. It is not put into the store."""
        return self._look_up(tree_id).tree

    # --- content

    def fetch_tree(self, lease: Lease, tree_id: str, progress: Progress | None = None) -> Fetched:
        """All of a tree: it is in the store afterwards, and the lease keeps it. Nothing is fetched that is there."""
        try:
            lease.keep_tree(tree_id)
            if not self._store.missing(tree_id):
                return Fetched()
        except NotFoundError:
            pass
        known = self._look_up(tree_id)
        fetched = self._fetch(lease, known, set(known.entries), progress)
        lease.add_tree(known.tree)
        self._store.missing(tree_id)  # a tree that was partial is so no more
        return fetched

    def fetch_objects(
        self, lease: Lease, tree_id: str, digests: Collection[bytes], progress: Progress | None = None
    ) -> Fetched:
        """Objects of a tree, as a whole; others may come with them. The lease keeps them."""
        known = self._look_up(tree_id)
        wanted = set(digests) - {b""}
        if unknown := wanted - known.entries.keys():
            raise NotFoundError(f"the tree {tree_id} has no object {min(unknown).hex()}")
        return self._fetch(lease, known, wanted, progress)

    def locate(self, tree_id: str) -> Located:
        """Which packs and pieces have the objects of a tree."""
        return self._look_up(tree_id).located

    def unpack(self, lease: Lease, tree_id: str, pack: Pack) -> Unpacked:
        """Of a pack those objects that the tree has and the store does not: in memory, kept by the lease once they are
        put into the store. `pack` may be one that the tree's index does not name."""
        known = self._look_up(tree_id)
        try:
            with self._claim(pack):
                return self._unpack(lease, known, pack, Fetched())
        except StoppedError:
            raise _stopped() from None

    def read(self, lease: Lease, tree_id: str, digest: bytes, offset: int, size: int) -> bytes:
        """Bytes of an object of a tree, fewer only at its end; the first of a large one before the rest has come.

        What is fetched for it is in the store afterwards, and kept by the lease, as soon as all of an object is here.
        """
        try:
            known = self._look_up(tree_id)
            entry = known.entries.get(digest)
            if entry is None:
                raise NotFoundError(f"the tree {tree_id} has no object {digest.hex()}")
            size = max(0, min(size, entry.size - offset))
            if size == 0:
                return b""
            lease.look_again([digest])
            if lease.keep_objects({digest: entry.size}):
                large = known.located.large.get(digest)
                if large is not None:
                    return self._read_large(lease, known, large, offset, size)
                self._fetch_pack(lease, known, known.located.packs[digest], Fetched(), None)
            return layout.read_part(self._store, digest, offset, size)
        except StoppedError:
            raise _stopped() from None

    def _read_large(self, lease: Lease, known: _Known, large: Large, offset: int, size: int) -> bytes:
        with Partial(self._store, large, self._stop) as arriving:
            if not lease.keep_objects({large.digest: large.size}):  # published before that file was made
                arriving.discard()
                return layout.read_part(self._store, large.digest, offset, size)
            for number in range(offset // BLOB_BYTES, (offset + size - 1) // BLOB_BYTES + 1):
                arriving.ensure(number, partial(self._piece, large, Fetched()))
            data = arriving.read(offset, size)
            self._publish(lease, known, large, arriving)
        if len(data) != size:
            raise CorruptedError(f"object {large.digest.hex()} was found damaged while it arrived. Try again")
        return data

    def _fetch(self, lease: Lease, known: _Known, digests: set[bytes], progress: Progress | None) -> Fetched:
        """The objects, side by side; the first failure ends it."""
        fetched = Fetched()
        missing = lease.keep_objects({digest: known.entries[digest].size for digest in digests})
        packs: dict[str, Pack] = {}
        for digest in missing - known.located.large.keys():
            pack = known.located.packs[digest]
            packs[pack.name] = pack
        # In the order of the tree: what lies side by side is read side by side, too.
        work: list[Callable[[], None]] = [
            partial(self._fetch_pack, lease, known, pack, fetched, progress)
            for pack in dict.fromkeys(known.located.packs.values())
            if pack.name in packs
        ]
        large = [one for one in known.located.large.values() if one.digest in missing]
        # Large files first: their pieces are most of the way, and the hash of a whole one comes after its last.
        pieces: list[Callable[[], None]] = [
            partial(self._fetch_piece, lease, known, one, number, fetched, progress)
            for one in large
            for number in range(len(one))
        ]
        self._side_by_side(pieces + work)
        return fetched

    def _side_by_side(self, work: Iterable[Callable[[], None]]) -> None:
        if self._stop.is_set():
            raise _stopped()
        futures: list[Future[None]] = [self._pool.submit(one) for one in work]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except StoppedError:
            raise _stopped() from None
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # those that had begun

    def _fetch_pack(self, lease: Lease, known: _Known, pack: Pack, fetched: Fetched, progress: Progress | None) -> None:
        """The objects of a pack that the tree has and the store does not."""
        with self._claim(pack):  # until all are in the store: others that wait for them look there
            unpacked = self._unpack(lease, known, pack, fetched)
            arrived = [known.entries[digest].size for digest in unpacked]
            unpacked.put_all(lease)
        if arrived:
            self._arrived(fetched, len(arrived), sum(arrived), progress)

    def _unpack(self, lease: Lease, known: _Known, pack: Pack, fetched: Fetched) -> Unpacked:
        sizes = {digest: size for digest, _, size in pack.objects() if digest in known.entries}
        lease.look_again(sizes)
        missing = lease.keep_objects(sizes)
        if not missing:
            return Unpacked(b"", {})
        data = self._get(pack.name, partial(layout.open_pack, pack, missing), fetched)
        objects = ((digest, offset) for digest, offset, _ in pack.objects() if digest in missing)
        return Unpacked(data, {digest: (offset, known.entries[digest]) for digest, offset in objects})

    @contextmanager
    def _claim(self, pack: Pack) -> Generator[None]:
        path = self._store.root / "downloads" / f"{pack.name.rpartition('/')[2]}.pack"
        try:
            with claim(path, self._stop):
                yield
        except FarcallError:  # some of which are OSErrors, too
            raise
        except OSError as error:
            raise disk_error(error, "writing", path) from error

    def _fetch_piece(
        self, lease: Lease, known: _Known, large: Large, number: int, fetched: Fetched, progress: Progress | None
    ) -> None:
        """One piece of a large object; the object, where it was the last."""
        if not lease.keep_objects({large.digest: large.size}):
            return
        with Partial(self._store, large, self._stop) as arriving:
            if not lease.keep_objects({large.digest: large.size}):  # published before that file was made
                arriving.discard()
                return
            arriving.ensure(number, partial(self._piece, large, fetched))
            if self._publish(lease, known, large, arriving):
                self._arrived(fetched, 1, large.size, progress)

    def _piece(self, large: Large, fetched: Fetched, piece: Piece) -> bytes:
        return self._get(piece.name, partial(layout.open_piece, large, piece), fetched)

    # --- asking

    def _look_up(self, tree_id: str) -> _Known:
        with self._lock:
            known = self._known.get(tree_id)
            if known is not None:
                self._known.move_to_end(tree_id)
                return known
        if self._stop.is_set():
            raise _stopped()
        named: Future[dict[bytes, Entry]] = Future()
        index = self._pool.submit(self._index, tree_id, named)  # beside the tree
        try:
            try:
                tree = self._store.tree(tree_id)
            except NotFoundError:
                tree = self._get(layout.tree_name(tree_id), partial(_open_tree, tree_id))
            entries: dict[bytes, Entry] = {}
            for entry in tree:
                if entry.digest:
                    entries.setdefault(entry.digest, entry)
        except BaseException as error:
            named.set_exception(error)
            raise
        named.set_result(entries)
        known = _Known(tree, index.result(), entries)
        with self._lock:
            self._known[tree_id] = known
            while len(self._known) > _KNOWN_TREES:
                self._known.popitem(last=False)
        return known

    def _index(self, tree_id: str, named: Future[dict[bytes, Entry]]) -> Located:
        """Where a tree's objects are; `named` will be those that it names."""
        stored = layout.stored_index(self._store, tree_id)
        if stored is not None:
            try:
                return _located(tree_id, stored, named.result())
            except CorruptedError:
                pass  # there may be a right one now

        def read(blob: bytes) -> tuple[layout.Index, Located]:
            index = layout.open_index(tree_id, blob)
            return index, _located(tree_id, index, named.result())

        index, located = self._get(layout.index_name(tree_id), read)
        layout.store_index(self._store, tree_id, index)
        return located

    def _publish(self, lease: Lease, known: _Known, large: Large, arriving: Partial) -> bool:
        """Make a large object of its pieces, if all are here; whether it was made now."""
        try:
            return arriving.publish(lease, *entry_inode(known.entries[large.digest]))
        except CorruptedError:
            # The index has named other pieces: there may be a right one where that came from.
            layout.forget_index(self._store, known.tree.id)
            with self._lock:
                self._known.pop(known.tree.id, None)
            raise

    def _get(self, name: str, read: Callable[[bytes], _T], fetched: Fetched | None = None) -> _T:
        """What `read` makes of a blob, from the first tier that has one of which it makes something."""
        attempts = Attempts(self._timing, self._stop)
        while True:
            refusals: list[FarcallError] = []
            passing: TransientError | None = None
            for tier in self._tiers:
                if self._stop.is_set():
                    raise StoppedError
                try:
                    blob = tier.get(name)
                    found = read(blob)
                except TransientError as error:
                    passing = error
                    continue
                except FarcallError as error:
                    refusals.append(error)
                    continue
                self._count(tier, len(blob), fetched)
                return found
            if passing is None:
                raise _refused(name, refusals)
            attempts.failed(passing)

    def _count(self, tier: Tier, size: int, fetched: Fetched | None) -> None:
        with self._lock:
            for one in (self._total, fetched) if fetched is not None else (self._total,):
                one.blobs += 1
                one.received_bytes += size
                one.by_tier[tier.title] = one.by_tier.get(tier.title, 0) + size

    def _arrived(self, fetched: Fetched, objects: int, size: int, progress: Progress | None) -> None:
        with self._lock:
            for one in (self._total, fetched):
                one.objects += objects
                one.object_bytes += size
        if progress is not None:
            progress(size)


def _located(tree_id: str, index: layout.Index, entries: Mapping[bytes, Entry]) -> Located:
    """Where all is that a tree names. Raises `CorruptedError` where its index does not say that."""
    found: dict[bytes, int] = {}
    located = Located({}, {large.digest: large for large in index.large})
    for pack in index.packs:
        for digest, _, size in pack.objects():
            located.packs[digest] = pack
            found[digest] = size
    found.update((large.digest, large.size) for large in index.large)
    for digest, entry in entries.items():
        if found.get(digest) != entry.size:
            raise CorruptedError(f"the index of tree {tree_id} does not say where its object {digest.hex()} is")
    return located


def _open_tree(tree_id: str, blob: bytes) -> Tree:
    # Who names the tree by its hash may have been told it by a tier: it is looked at as a stranger's.
    tree = Tree.decode(layout.decode_blob(blob, MAX_BLOB_BYTES, f"tree {tree_id}"))
    if tree.id != tree_id:
        raise CorruptedError(f"tree {tree_id} arrived as tree {tree.id}")
    return tree


def _open_record(kind: str, key: str, blob: bytes) -> Record:
    return layout.decode_record(layout.decode_blob(blob, MAX_BLOB_BYTES, f"the record {kind}/{key}"), kind, key)


def _refused(name: str, refusals: Sequence[FarcallError]) -> FarcallError:
    """The error for a blob that no tier gives, for what will not pass."""
    if not refusals:
        return NotFoundError(f"{name} is not here, and there is no other place to get it from")
    worst = next((error for error in refusals if not isinstance(error, NotFoundError)), refusals[0])
    said = "; ".join(dict.fromkeys(map(str, refusals)))
    return type(worst)(f"{name} cannot be fetched: {said}")


def _stopped() -> ConnectionError:
    return ConnectionError("fetching was ended, because the process that fetches is ending")
