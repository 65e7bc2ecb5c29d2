"""Room on a store's disk for what comes from elsewhere: what was used least recently makes way for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress

from farcall.content.disk import disk_error
from farcall.content.gc import collect
from farcall.content.store import Store
from farcall.content.tiers.partial import part_path
from farcall.content.tree import Tree
from farcall.errors import ResourceExhaustedError

KIND = "fetched"  # of the records that say when which tree was used last
RESERVE_BYTES = 32 << 20  # that stay free, for containers and logs
RESERVE_SHARE = 0.02  # the same, of a small disk
KEPT_DAYS = 30  # without use, after which a fetched tree is nobody's
PAUSE = 20  # times as long as a collection took that did not make enough room, before the next


class Room:
    """The room of one store. Any number of threads may use it; they wait for each other's collections."""

    def __init__(self, store: Store, whose: str) -> None:
        """`whose` store it is, for messages: "worker gpu-box"."""
        self._store = store
        self._whose = whose
        self._making = threading.Lock()
        self._vain_until = 0.0

    def use(self, tree_id: str) -> None:
        """A tree that was fetched is used now: until there is need of room it stays. Somebody must be keeping it."""
        with suppress(ResourceExhaustedError):  # then it is the first to go
            if self._store.record(KIND, tree_id) is None:
                self._store.put_record(KIND, tree_id, trees=[tree_id])

    def forget_old(self) -> None:
        """What has not been used for long goes with the next collection. Raises what `Store.records` raises."""
        oldest = time.time() - KEPT_DAYS * 86400
        for record in self._store.records(KIND):
            if record.used < oldest:
                self._store.delete_record(KIND, record.key)

    def lacking(self, tree: Tree) -> int:
        """Bytes of a tree's files that are not here."""
        sizes = {entry.digest: entry.size for entry in tree if entry.digest and not self._store.has(entry.digest)}
        total = sum(sizes.values())
        for digest in sizes:
            with suppress(OSError):
                total -= os.stat(part_path(self._store, digest)).st_blocks * 512
        return max(0, total)

    def has(self, size: int) -> bool:
        """Whether so many bytes have room, and some are left. Raises what `disk_error` says."""
        free, reserve = self._free()
        return free >= size + reserve

    def make(self, size: int, what: str) -> None:
        """So many bytes have room when this returns; `what` needs them. Content that nobody keeps goes for it, and of
        what was fetched, or can be built again, what was used least recently.

        Raises ResourceExhaustedError where that is not enough, and what `collect` raises.
        """
        with self._making:
            if self.has(size):
                return
            if time.monotonic() >= self._vain_until:
                began = time.monotonic()
                free, reserve = self._free()
                held = self._store.statistics().object_bytes
                done = collect(self._store, max(0, held - (size + reserve - free)))
                logging.getLogger("farcall.content").info("removed %d bytes for %s", done.freed_bytes, what)
                if self.has(size):
                    return
                ended = time.monotonic()
                self._vain_until = ended + PAUSE * (ended - began)
        free, reserve = self._free()
        raise ResourceExhaustedError(
            f"{self._whose} has no room for {what}: {_mebibytes(size)} and {_mebibytes(reserve)} to spare are needed "
            f"on the disk of {self._store.root}, {_mebibytes(free)} are free, and nothing there can be cleared. "
            "Free some space there, or give it a larger disk"
        )

    def _free(self) -> tuple[int, int]:
        """Bytes that are free, and those of them that are to stay so."""
        try:
            found = os.statvfs(self._store.root)
        except OSError as error:
            raise disk_error(error, "looking for room on", self._store.root) from error
        reserve = min(RESERVE_BYTES, int(found.f_blocks * found.f_frsize * RESERVE_SHARE))
        return found.f_bavail * found.f_frsize, reserve


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
