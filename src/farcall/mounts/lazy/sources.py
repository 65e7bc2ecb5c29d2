"""Where what a store lacks is fetched from: a list of places in the store, for every process that works for it.

The launcher's processes read no settings. Who does (a server, a worker) writes them down here when it starts.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import msgspec

from farcall.content import profiles
from farcall.content.attempts import Timing
from farcall.content.disk import disk_error, write_file
from farcall.content.lease import Lease
from farcall.content.store import Store
from farcall.content.tiers import Fetcher, WritableTier
from farcall.content.tiers.places import open_place
from farcall.errors import CorruptedError, FarcallError

SERVER, WORKER = "server", "worker"  # owners of sources

# Somebody waits in a system call that mostly does not fail: some 10 s in all for a place that does not answer.
_TIMING = Timing(attempts=8, longest_delay=2.0)


class Source(msgspec.Struct, frozen=True):
    """A place to fetch from, as `open_place` takes it."""

    place: str
    endpoint: str = ""


def set_sources(store: Store, sources: Sequence[Source], owner: str = SERVER) -> None:
    """Write down from where a store's missing objects are fetched, in the order in which they are asked.

    A server and a worker may have one store: each owner has sources of its own, and all are asked. Raises what
    `disk_error` says.
    """
    path = _path(store, owner)
    made = store.root / "incoming" / f"sources-{secrets.token_hex(8)}"
    try:
        with store.steady():
            write_file(str(made), msgspec.json.encode(list(sources)), 0o600)
            os.rename(made, path)
    except OSError as error:
        raise disk_error(error, "writing", path) from error


def open_tiers(store: Store) -> list[WritableTier]:
    """The places of a store. Raises `CorruptedError`, `InvalidError` and what `disk_error` says."""
    found = dict.fromkeys(source for owner in (SERVER, WORKER) for source in _read(store, owner))
    return [open_place(source.place, source.endpoint, _TIMING) for source in found]


class Places(Sequence[WritableTier]):
    """The places of a store, as they are at the moment: a server that is started with another setting changes them."""

    def __init__(self, store: Store) -> None:
        """Raises as `open_tiers`."""
        self._store = store
        self._lock = threading.Lock()
        self._seen = self._look()
        self._tiers = open_tiers(store)

    def __len__(self) -> int:
        return len(self._current())

    @overload
    def __getitem__(self, index: int) -> WritableTier: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[WritableTier]: ...

    def __getitem__(self, index: int | slice) -> WritableTier | Sequence[WritableTier]:
        return self._current()[index]

    def __iter__(self) -> Iterator[WritableTier]:
        return iter(self._current())

    def _current(self) -> list[WritableTier]:
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                with suppress(FarcallError):  # what cannot be read changes nothing
                    self._tiers = open_tiers(self._store)
            return self._tiers

    def _look(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for owner in (SERVER, WORKER):
            with suppress(OSError):
                status = _path(self._store, owner).stat()
                found.append((status.st_ino, status.st_mtime_ns))
        return found


def _read(store: Store, owner: str) -> list[Source]:
    path = _path(store, owner)
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Source])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise CorruptedError(f"{path} cannot be read: {error}. Start the {owner} anew, which writes it") from None
    except OSError as error:
        raise disk_error(error, "reading", path) from error


def _path(store: Store, owner: str) -> Path:
    return store.root / ("sources" if owner == SERVER else f"sources-{owner}")


def open_fetcher(store: Store, tiers: Sequence[WritableTier]) -> Fetcher:
    """A fetcher for those who wait."""
    return Fetcher(store, tiers, timing=_TIMING)


def fetch_missing(lease: Lease, tree_id: str) -> None:
    """All that a partial tree lacks is in the store when this returns: what its start profile names, then the rest.

    Raises what a `Fetcher` and `open_tiers` raise.
    """
    store = lease.store
    if not store.missing(tree_id):
        return
    tiers = open_tiers(store)
    fetcher = Fetcher(store, tiers)
    try:
        profiles.Exchange(store, tiers).receive(tree_id)
        missing = {entry.digest for entry in store.missing(tree_id)}
        fetcher.fetch_objects(lease, tree_id, missing.intersection(profiles.read(store, tree_id).objects))
        fetcher.fetch_tree(lease, tree_id)
    finally:
        fetcher.close()
