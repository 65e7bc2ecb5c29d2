"""Pushing: what the store has, into a tier that others fetch from."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

import msgspec

from farcall.content.attempts import Attempts, StoppedError, Timing, TransientError
from farcall.content.disk import disk_error, write_all
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tiers import layout
from farcall.content.tiers.fetcher import TIMING
from farcall.content.tiers.layout import Index, Large, Pack, Piece
from farcall.content.tiers.tier import WritableTier
from farcall.errors import ConnectionError, CorruptedError, NotFoundError

THREADS = 4  # blobs on their way at once
_MARK = "farcall.json"  # the blob by which a tier is known again

_T = TypeVar("_T")


class _Mark(msgspec.Struct):
    """What a tier says of itself."""

    format: int
    id: str


@dataclass
class Pushed:
    """What was pushed."""

    blobs: int = 0
    """Blobs that were not in the tier."""
    sent_bytes: int = 0
    """Bytes of them, as they were sent."""


class Pusher:
    """Puts trees and records of a store into a tier. Its methods block, and any number of threads may call them.

    A tree is in the tier after its objects, and a record after its trees; so whoever finds one finds all of it. What
    has arrived is written down in the store: a push that was cut short goes on from there, in whichever process.
    """

    def __init__(self, store: Store, tier: WritableTier, *, timing: Timing = TIMING, threads: int = THREADS) -> None:
        self._store = store
        self._tier = tier
        self._timing = timing
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="push")
        self._lock = threading.Lock()
        self._log: _Log | None = None

    def close(self) -> None:
        """Ends what is going on: whoever waits for it gets a `ConnectionError`. Idempotent."""
        self._stop.set()
        self._pool.shutdown()

    def push_tree(self, tree_id: str, progress: Callable[[int], None] | None = None) -> Pushed:
        """All of a tree that the tier does not have. `progress` gets the size of each blob that has arrived.

        Raises `NotFoundError` for a tree that is not in the store, `ConnectionError`, `TimeoutError` or what the tier
        refuses it for, and what `disk_error` says.
        """
        pushed = Pushed()
        try:
            log = self._opened()
            if layout.tree_name(tree_id) in log:
                return pushed
            with self._store.lease("push") as lease:
                lease.keep_tree(tree_id)
                if self._adopt(tree_id):
                    return pushed
                if self._store.partial_path(tree_id).exists():  # what it lacks here must be there with other trees
                    for known in layout.indexed_trees(self._store):
                        self._adopt(known)
                tree = self._store.tree(tree_id)
                index = layout.stored_index(self._store, tree_id)
                if index is None or not all(map(self._is_at_hand, index.packs)):
                    index = layout.make_index(self._store, tree, self._known_indexes())
                    layout.store_index(self._store, tree_id, index)
                self._put_all(_content(self._store, index), pushed, progress)
                self._put(layout.index_name(tree_id), lambda: layout.encode_index(index), pushed, progress)
                self._put(layout.tree_name(tree_id), lambda: tree.encoded, pushed, progress)
        except StoppedError:
            raise _stopped() from None
        return pushed

    def _adopt(self, tree_id: str) -> bool:
        """Whether the tier has a tree already, from another machine: then all that its index names is there, too."""
        log = self._opened()
        name = layout.tree_name(tree_id)
        if name in log:
            return True
        try:
            self._patiently(partial(self._tier.get, name))
            blob = self._patiently(partial(self._tier.get, layout.index_name(tree_id)))
        except NotFoundError:
            return False
        index = layout.open_index(tree_id, blob)
        layout.store_index(self._store, tree_id, index)
        for known, _ in _content(self._store, index):
            log.add(known)
        log.add(name)
        return True

    def push_record(self, record: Record) -> Pushed:
        """A record, after its trees. Raises as `push_tree`."""
        pushed = Pushed()
        for tree_id in record.trees:
            done = self.push_tree(tree_id)
            pushed.blobs += done.blobs
            pushed.sent_bytes += done.sent_bytes
        try:
            self._put(
                layout.record_name(record.kind, record.key),
                lambda: layout.encode_record(record),
                pushed,
                None,
                _noted(record),
            )
        except StoppedError:
            raise _stopped() from None
        return pushed

    def _put_all(
        self,
        blobs: Iterable[tuple[str, Callable[[], bytes]]],
        pushed: Pushed,
        progress: Callable[[int], None] | None,
    ) -> None:
        if self._stop.is_set():
            raise StoppedError
        futures = [self._pool.submit(self._put, name, read, pushed, progress) for name, read in blobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _put(
        self,
        name: str,
        read: Callable[[], bytes],
        pushed: Pushed,
        progress: Callable[[int], None] | None,
        noted: str = "",
    ) -> None:
        """Put a blob there that is not, and write it down as `noted`, else under its own name."""
        noted = noted or name
        log = self._opened()
        if noted in log:
            return
        blob = layout.encode_blob(read())
        self._patiently(partial(self._tier.put, name, blob))
        log.add(noted)
        with self._lock:
            pushed.blobs += 1
            pushed.sent_bytes += len(blob)
        if progress is not None:
            progress(len(blob))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        attempts = Attempts(self._timing, self._stop)
        while True:
            if self._stop.is_set():
                raise StoppedError
            try:
                return ask()
            except TransientError as failure:
                attempts.failed(failure)

    def _known_indexes(self) -> Iterable[Index]:
        for tree_id in layout.indexed_trees(self._store):
            if (index := layout.stored_index(self._store, tree_id)) is not None:
                yield Index(tuple(filter(self._is_at_hand, index.packs)), index.large)

    def _is_at_hand(self, pack: Pack) -> bool:
        """Whether a pack is in the tier, or can be made. A pack that was fetched for one tree may have had files of
        others in it, which are not here."""
        return pack.name in self._opened() or all(self._store.has(digest) for digest, _, _ in pack.objects())

    def _opened(self) -> "_Log":
        """What this tier has. The tier is asked who it is once: one that was emptied is another one."""
        with self._lock:
            if self._log is None:
                self._log = _Log(_log_path(self._store, self._tier.title), self._tier_id())
            return self._log

    def _tier_id(self) -> str:
        try:
            blob = self._patiently(partial(self._tier.get, _MARK))
        except NotFoundError:
            mark = _Mark(layout.FORMAT, token_hex(16))
            self._patiently(partial(self._tier.put, _MARK, msgspec.json.encode(mark)))
            return mark.id
        try:
            mark = msgspec.json.decode(blob, type=_Mark)
        except msgspec.DecodeError as error:
            raise CorruptedError(f"{self._tier.title} has a {_MARK} that cannot be read: {error}") from None
        if mark.format != layout.FORMAT or not mark.id.isalnum():
            raise CorruptedError(
                f"{self._tier.title} is of another version of farcall (format {mark.format}, not {layout.FORMAT}). "
                "Use another prefix"
            )
        return mark.id


class _Log:
    """What is known to be in a tier, lines of a file that only grows: the tier's id, the names of blobs.

    What other processes push meanwhile is seen, too.
    """

    def __init__(self, path: Path, tier_id: str) -> None:
        self._path = path
        self._read = 0  # bytes of the file
        self._names = set[str](_read_log(path))
        if tier_id not in self._names:  # it was emptied since, or is another one
            try:
                path.parent.mkdir(mode=0o755, exist_ok=True)
                path.unlink(missing_ok=True)
            except OSError as error:
                raise disk_error(error, "writing", path) from error
            self._names = set[str]()
            self.add(tier_id)

    def __contains__(self, name: str) -> bool:
        try:
            if name not in self._names and (size := self._path.stat().st_size) != self._read:
                self._names.update(_read_log(self._path))
                self._read = size
        except OSError as error:
            raise disk_error(error, "reading", self._path) from error
        return name in self._names

    def add(self, name: str) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, f"{name}\n".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(error, "writing", self._path) from error
        self._names.add(name)


def pending(store: Store, title: str, records: Iterable[Record]) -> list[Record]:
    """Those of the records that were not pushed into the tier of that title, as far as is written down here: nobody is
    asked. Raises what `disk_error` says."""
    known = set(_read_log(_log_path(store, title)))
    return [record for record in records if _noted(record) not in known]


def _noted(record: Record) -> str:
    """What is written down of a record: another one may take its place."""
    digest = hashlib.sha256(layout.encode_record(record)).hexdigest()
    return f"{layout.record_name(record.kind, record.key)} {digest}"


def _log_path(store: Store, title: str) -> Path:
    return store.root / "tiers" / hashlib.sha256(title.encode()).hexdigest()


def _read_log(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error(error, "reading", path) from error


def _content(store: Store, index: Index) -> list[tuple[str, Callable[[], bytes]]]:
    """What an index names, in its order: names, and what reads their bytes from the store."""
    found: list[tuple[str, Callable[[], bytes]]] = []
    for pack in index.packs:
        found.append((pack.name, partial(_read_pack, store, pack)))
    for large in index.large:
        for number in range(len(large)):
            piece = large.piece(number)
            found.append((piece.name, partial(_read_piece, store, large, piece)))
    return found


def _read_pack(store: Store, pack: Pack) -> bytes:
    return layout.pack_bytes(store, pack)


def _read_piece(store: Store, large: Large, piece: Piece) -> bytes:
    return layout.read_part(store, large.digest, piece.offset, piece.size)


def _stopped() -> ConnectionError:
    return ConnectionError("pushing was ended, because the process that pushes is ending")
