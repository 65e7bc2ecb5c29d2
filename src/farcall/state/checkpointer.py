"""Copies the write-ahead log into the database, on a thread and a connection of its own.

Left to itself SQLite does that within the commit that makes the log long, and whoever waits for that commit waits for
the copying and for its fsync.
"""

import contextlib
import sqlite3
import threading
from pathlib import Path

# What the log may grow by before it is copied, about. Shorter and the same page is copied more often, longer and each
# copy holds up the disk for longer.
LOG_BYTES = 4 * 2**20
# Pages of indexes and counters that a group of operations writes beside its rows, about.
_GROUP_BYTES = 32 * 1024


class Checkpointer:
    """Told of each commit by the writer's thread, whose turn it is to `finish` now and then.

    While there are commits a copy never gets to the end of the log, which begins anew only from there. So after each
    copy the writer, between two of its groups, copies the little that was written meanwhile.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._written = 0  # bytes since the last copy began, about
        self._wake = threading.Event()
        self._copied = threading.Event()
        self._finished = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="farcall-state-checkpointer", daemon=True)
        self._thread.start()

    def committed(self, size: int) -> None:
        """A group of operations that wrote so many bytes is on disk."""
        self._written += size + _GROUP_BYTES
        if self._written >= LOG_BYTES:
            self._written = 0
            self._wake.set()

    def finish(self, connection: sqlite3.Connection) -> None:
        """Copies what was written during the thread's copy, where there was one. Not within a transaction."""
        if self._copied.is_set():
            self._copied.clear()
            _copy(connection)
            self._finished.set()

    def close(self) -> None:
        """Ends the thread. Blocks. Idempotent."""
        self._closing = True
        self._wake.set()
        self._finished.set()
        self._thread.join()

    def _work(self) -> None:
        with contextlib.closing(sqlite3.connect(self._database, isolation_level=None)) as connection:
            while True:
                self._wake.wait()
                self._wake.clear()
                if self._closing:
                    return
                self._finished.clear()
                _copy(connection)
                self._copied.set()
                if self._closing:  # `close` may have come before the clear
                    return
                # The writer's turn meets no other copy: only one can be made at a time, and the log would grow for as
                # long as a disk is slower than what is written.
                self._finished.wait()


def _copy(connection: sqlite3.Connection) -> None:
    # PASSIVE waits for nobody and holds nobody up. What fails, on a full disk say, stays in the log, which is as good.
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
