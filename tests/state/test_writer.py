"""Group commit: what goes together, in which order, and what one failure does to the others."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from farcall import errors
from farcall.state.checkpointer import LOG_BYTES
from farcall.state.writer import BULK_PATIENCE_SECONDS, GROUP_BYTES, GROUP_SECONDS, Operation, Transaction, Writer


class Bench:
    """A writer over a table of numbers, whose thread can be held while operations queue up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time = 0.0
        self.removed: list[str] = []
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
        self.connection = connection
        self.writer = Writer(connection, path, path, self.removed.extend, clock=lambda: self.time)
        self._held = threading.Event()

    def submit(self, run: Callable[[Transaction], object], **fields: Any) -> asyncio.Future[object]:
        operation = Operation(run, asyncio.get_running_loop().create_future(), **fields)
        self.writer.submit(operation)
        return operation.future

    def insert(self, number: int, **fields: Any) -> asyncio.Future[object]:
        return self.submit(lambda t: t.execute("INSERT INTO numbers VALUES (?)", (number,)).rowcount, **fields)

    def hold(self) -> asyncio.Future[object]:
        """An operation that fills its group by itself and keeps the thread until `release`."""
        return self.submit(lambda _: self._held.wait(), size=GROUP_BYTES)

    def release(self) -> None:
        self._held.set()

    def committed(self) -> list[int]:
        with sqlite3.connect(self.path) as reader:
            return [number for (number,) in reader.execute("SELECT number FROM numbers ORDER BY rowid")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(tmp_path / "numbers.db")
    yield opened
    opened.release()
    opened.writer.close()
    opened.connection.close()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


def test_what_waits_together_is_committed_together_single_ahead_of_bulk_and_not_for_its_sake(bench: Bench) -> None:
    async def use() -> None:
        waiting = [bench.hold()]
        waiting += [bench.insert(n, bulk=True) for n in (1, 2, 3)]
        waiting += [bench.insert(n) for n in (4, 5, 6)]
        bench.release()
        await asyncio.gather(*waiting)

    run(use())
    assert bench.committed() == [4, 5, 6, 1, 2, 3]
    found = bench.writer.statistics()
    assert (found.groups, found.operations, found.largest_group) == (3, 7, 3)


def test_a_group_closes_at_its_bytes(bench: Bench) -> None:
    async def use() -> None:
        waiting = [bench.hold(), *(bench.insert(n, size=GROUP_BYTES // 2) for n in range(6))]
        bench.release()
        await asyncio.gather(*waiting)

    run(use())
    assert bench.committed() == list(range(6))
    assert bench.writer.statistics().groups == 1 + 3


def test_a_group_closes_at_its_time(bench: Bench) -> None:
    def slow(transaction: Transaction) -> None:
        bench.time += GROUP_SECONDS / 2

    async def use() -> None:
        waiting = [bench.hold(), *(bench.submit(slow) for _ in range(6))]
        bench.release()
        await asyncio.gather(*waiting)

    run(use())
    assert bench.writer.statistics().groups == 1 + 3


def test_bulk_is_not_starved(bench: Bench) -> None:
    async def use() -> None:
        waiting = [bench.hold(), *(bench.insert(n, bulk=True) for n in (100, 101))]
        waiting += [bench.insert(n, size=GROUP_BYTES) for n in range(3)]
        bench.time += BULK_PATIENCE_SECONDS * 2
        bench.release()
        await asyncio.gather(*waiting)

    run(use())
    assert bench.committed() == [100, 0, 101, 1, 2]  # one in each group, the holder's included


def test_the_log_is_copied_while_there_are_commits_and_begins_anew(bench: Bench) -> None:
    log = bench.path.with_name(bench.path.name + "-wal")

    async def use() -> None:
        length = number = 0
        while log.stat().st_size > length:
            length = log.stat().st_size
            await asyncio.gather(*(bench.insert(number + n, size=LOG_BYTES // 10) for n in range(10)))
            number += 10
        assert bench.committed() == list(range(number))

    run(use())


def test_an_operation_that_fails_undoes_only_itself(bench: Bench) -> None:
    def fail(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO numbers VALUES (66)")
        transaction.discard("kept")
        raise errors.NotFoundError("no such thing")

    def succeed(transaction: Transaction) -> str:
        transaction.execute("INSERT INTO numbers VALUES (2)")
        transaction.discard("old")
        return "done"

    async def use() -> None:
        waiting = [bench.hold(), bench.insert(1), bench.submit(fail, files=("new",)), bench.submit(succeed)]
        bench.release()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [results[1], results[3]] == [1, "done"]
        assert isinstance(results[2], errors.NotFoundError)

    run(use())
    assert bench.committed() == [1, 2]
    bench.writer.close()
    assert sorted(bench.removed) == ["new", "old"]


def test_a_database_error_fails_only_its_operation(bench: Bench) -> None:
    def refused(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO numbers VALUES (66)")
        transaction.execute("INSERT INTO missing VALUES (1)")

    async def use() -> None:
        waiting = [bench.hold(), bench.insert(1), bench.submit(refused), bench.insert(2), bench.insert(3)]
        bench.release()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [results[1], results[3], results[4]] == [1, 1, 1]
        assert isinstance(results[2], errors.InternalError)

    run(use())
    assert bench.committed() == [1, 2, 3]
    assert bench.writer.statistics().split_groups == 1


def test_close_commits_what_is_queued_and_refuses_the_rest(bench: Bench) -> None:
    async def use() -> None:
        waiting = [bench.hold(), *(bench.insert(n) for n in range(3))]
        bench.release()
        await asyncio.to_thread(bench.writer.close)
        await asyncio.gather(*waiting)
        with pytest.raises(errors.ConnectionError, match="closed"):
            await bench.insert(9, files=("new",))

    run(use())
    assert bench.committed() == [0, 1, 2]
    assert bench.removed == ["new"]


def test_a_caller_whose_loop_has_ended_disturbs_nobody(bench: Bench) -> None:
    async def leave() -> None:
        bench.hold()
        bench.insert(1)

    async def stay() -> None:
        waiting = bench.insert(2)
        bench.release()
        await waiting

    asyncio.run(leave())
    run(stay())
    assert bench.committed() == [1, 2]
