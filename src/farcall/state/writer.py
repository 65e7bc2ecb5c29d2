"""The one writer of the database: a thread that commits operations in groups.

A commit costs an fsync, whatever is in it, so operations that wait together are committed together. A group is closed
when nothing waits, or at 2 ms or 32 KiB, so that the first in it does not wait for a flood behind it. Where single
operations are in a group, bulk ones that wait are left to the next.
"""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from farcall.errors import ConnectionError, FarcallError, InternalError
from farcall.state.checkpointer import Checkpointer
from farcall.state.disk import disk_error

GROUP_SECONDS = 0.002
GROUP_BYTES = 32 * 1024
# Single operations go first; a bulk operation that has waited this long gets one place in each group all the same.
BULK_PATIENCE_SECONDS = 0.05

T = TypeVar("T")


class Transaction:
    """What an operation writes through. Payload files discarded here are removed once the group is committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.discarded: list[str] = []

    def discard(self, file: str | None) -> None:
        """Remove this payload file when, and only when, the operation is committed."""
        if file is not None:
            self.discarded.append(file)


@dataclass(eq=False)
class Operation(Generic[T]):
    """A unit of writing: all of it is committed or none. `run` may be run twice: it touches nothing but the database.

    `size` is about how many bytes it writes; `files` are the payload files it names, removed if it fails; `bulk`
    operations let single ones pass.
    """

    run: Callable[[Transaction], T]
    future: asyncio.Future[T]
    size: int = 0
    bulk: bool = False
    files: tuple[str, ...] = ()
    loop: asyncio.AbstractEventLoop = field(init=False)
    queued_at: float = field(init=False, default=0.0)
    result: T | None = field(init=False, default=None)
    error: BaseException | None = field(init=False, default=None)
    discarded: list[str] = field(init=False, default_factory=list[str])

    def __post_init__(self) -> None:
        self.loop = self.future.get_loop()


@dataclass(frozen=True)
class WriterStatistics:
    """Counters since the store was opened."""

    groups: int
    """Transactions committed."""
    operations: int
    """Operations committed."""
    failures: int
    """Operations that raised, a full disk included."""
    split_groups: int
    """Groups that could not be committed together and were tried one operation at a time."""
    largest_group: int
    """Most operations in one group."""
    written_bytes: int
    """Payload bytes of the committed operations."""
    commit_seconds: float
    """Time spent in COMMIT, the fsync included."""
    queued: int
    """Operations waiting now."""


class Writer:
    """Owns `connection` and runs operations on a thread of its own. `submit` may be called from any thread.

    An operation's future is resolved in its loop after the commit is on disk. Operations of one lane (single or bulk)
    are committed in the order of `submit`. `remove_files` is called with payload files nobody names any more.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        database: Path,
        path: Path,
        remove_files: Callable[[Iterable[str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._connection = connection
        self._checkpointer = Checkpointer(database)
        self._path = path
        self._remove_files = remove_files
        self._ready = threading.Condition()
        self._single: deque[Operation[Any]] = deque()
        self._bulk: deque[Operation[Any]] = deque()
        self._closing = False
        self._groups = self._operations = self._failures = self._split_groups = 0
        self._largest_group = self._written_bytes = 0
        self._commit_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="farcall-state-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[Any]) -> None:
        """Queue the operation. After `close` its future raises ConnectionError instead."""
        operation.queued_at = self._clock()
        with self._ready:
            closing = self._closing
            if not closing:
                (self._bulk if operation.bulk else self._single).append(operation)
                self._ready.notify()
        if closing:
            self.fail(operation, closed_error(self._path))

    def fail(self, operation: Operation[Any], error: FarcallError) -> None:
        """Resolve an operation that is not going to be queued. May be called from any thread."""
        operation.error = error
        self._finish([operation])

    def close(self) -> None:
        """Commit what is queued and end the thread. Blocks. Idempotent."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()
        self._checkpointer.close()

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            groups=self._groups,
            operations=self._operations,
            failures=self._failures,
            split_groups=self._split_groups,
            largest_group=self._largest_group,
            written_bytes=self._written_bytes,
            commit_seconds=self._commit_seconds,
            queued=len(self._single) + len(self._bulk),
        )

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (self._single or self._bulk or self._closing):
                    self._ready.wait()
                if not (self._single or self._bulk):
                    return
            group: list[Operation[Any]] = []
            try:
                self._commit_group(group)
            except sqlite3.Error:
                # The whole group was rolled back, perhaps because of one operation that is too large for the disk.
                self._split_groups += 1
                for operation in group:
                    self._commit_alone(operation)
            self._finish(group)
            self._checkpointer.committed(sum(operation.size for operation in group))
            self._checkpointer.finish(self._connection)

    def _commit_group(self, group: list[Operation[Any]]) -> None:
        """Take operations into `group` and commit them. A sqlite3.Error means that none of them is committed."""
        deadline = self._clock() + GROUP_SECONDS
        size = 0
        has_single = False
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            while (operation := self._take(bulk=not has_single)) is not None:
                group.append(operation)
                self._run(operation)
                size += operation.size
                has_single = has_single or not operation.bulk
                if size >= GROUP_BYTES or self._clock() >= deadline:
                    break
            if has_single and (operation := self._overdue_bulk()) is not None:
                group.append(operation)
                self._run(operation)
            self._commit()
        except sqlite3.Error:
            self._rollback()
            if not group:
                # BEGIN itself failed; without a first operation the loop above would spin on it.
                operation = self._take(bulk=True)
                assert operation is not None, "the thread woke for an operation"
                group.append(operation)
            raise

    def _take(self, *, bulk: bool) -> Operation[Any] | None:
        with self._ready:
            if self._single:
                return self._single.popleft()
            return self._bulk.popleft() if self._bulk and bulk else None

    def _overdue_bulk(self) -> Operation[Any] | None:
        with self._ready:
            if self._bulk and self._clock() - self._bulk[0].queued_at > BULK_PATIENCE_SECONDS:
                return self._bulk.popleft()
            return None

    def _run(self, operation: Operation[Any]) -> None:
        """Run it within the open transaction. Errors of its own undo only its own writes; the disk's undo the group."""
        transaction = Transaction(self._connection)
        self._connection.execute("SAVEPOINT operation")
        try:
            operation.result = operation.run(transaction)
            operation.error = None
            operation.discarded = transaction.discarded
        except sqlite3.Error:
            raise
        except BaseException as error:
            operation.error = error
            self._connection.execute("ROLLBACK TO operation")
        self._connection.execute("RELEASE operation")

    def _commit_alone(self, operation: Operation[Any]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._run(operation)
            self._commit()
        except sqlite3.Error as error:
            self._rollback()
            operation.error = disk_error(error, self._path)

    def _commit(self) -> None:
        started = time.monotonic()
        self._connection.execute("COMMIT")
        self._commit_seconds += time.monotonic() - started
        self._groups += 1

    def _rollback(self) -> None:
        # SQLite has rolled back by itself on most errors that get here.
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _finish(self, group: list[Operation[Any]]) -> None:
        self._largest_group = max(self._largest_group, len(group))
        garbage: list[str] = []
        for operation in group:
            if operation.error is None:
                self._operations += 1
                self._written_bytes += operation.size
                garbage += operation.discarded
            else:
                self._failures += 1
                garbage += operation.files
                if not isinstance(operation.error, FarcallError):
                    operation.error = InternalError(f"a write to the state store failed: {operation.error!r}")
        _deliver(group)
        self._remove_files(garbage)


def closed_error(path: Path) -> FarcallError:
    """The error of a store that has been closed."""
    return ConnectionError(f"the state store {path} is closed: the server is stopping. Start it again and retry.")


def _deliver(group: list[Operation[Any]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Operation[Any]]] = {}
    for operation in group:
        by_loop.setdefault(operation.loop, []).append(operation)
    for loop, operations in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, operations)
        except RuntimeError:
            continue  # the loop is closed: nobody waits there any more


def _resolve(operations: list[Operation[Any]]) -> None:
    for operation in operations:
        if operation.future.done():
            continue
        if operation.error is None:
            operation.future.set_result(operation.result)
        else:
            operation.future.set_exception(operation.error)
