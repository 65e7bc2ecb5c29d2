"""Reads, on threads and connections of their own, so that they wait neither for the writer nor in the event loop."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from farcall.state.disk import disk_error
from farcall.state.writer import closed_error

READER_THREADS = 2

T = TypeVar("T")


class Reader:
    """Runs read-only queries against the newest committed state."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="farcall-state-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._closed = False

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The query's result. Raises what it raises, and InternalError when the database cannot be read."""
        if self._closed:
            raise closed_error(self._database)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, query)

    def close(self) -> None:
        """Wait for the reads under way and close. Blocks. Idempotent."""
        self._closed = True
        self._threads.shutdown(wait=True)
        while self._connections:
            self._connections.pop().close()

    def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = sqlite3.connect(self._database, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA query_only = ON")
                self._local.connection = connection
                self._connections.append(connection)
            return query(connection)
        except sqlite3.Error as error:
            raise disk_error(error, self._database) from error
