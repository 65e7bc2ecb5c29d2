"""The metadata of one embedded server."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from farcall.errors import InternalError
from farcall.state import apps as app_rows
from farcall.state import calls as call_rows
from farcall.state import inspection
from farcall.state import secrets as secret_rows
from farcall.state.calls import StoredPayload
from farcall.state.clock import Clock, uptime
from farcall.state.disk import disk_error
from farcall.state.lock import StateLock
from farcall.state.payloads import FILE_BYTES, PayloadFiles
from farcall.state.reader import Reader
from farcall.state.records import (
    App,
    AppState,
    Call,
    Input,
    InspectedInput,
    LoadedInput,
    Output,
    PendingSpan,
    Secret,
    Span,
)
from farcall.state.schema import migrate
from farcall.state.vault import KEY_NAME, Vault
from farcall.state.writer import Operation, Transaction, Writer, WriterStatistics, closed_error

DAY_SECONDS = 24 * 3600.0
RESULTS_KEPT_SECONDS = 7 * DAY_SECONDS
RESULTS_KEPT_BYTES = 10 * 2**30
TOMBSTONES_KEPT_SECONDS = 30 * DAY_SECONDS

# What a row costs besides its payload, about; a group of small operations closes by this.
_ROW_BYTES = 200

T = TypeVar("T")


@dataclass(frozen=True)
class StateStatistics:
    """Counters since the store was opened."""

    writer: WriterStatistics
    """What the writer has committed."""
    swept_files: int
    """Payload files without a row, left by a crash and removed at the start."""
    database_bytes: int
    """Size of the database and its write-ahead log, payload files not included."""


class StateStore:
    """Apps, spawned calls with their results, secrets: durable in one directory (SQLite in WAL mode, synchronous=FULL).

    Every coroutine that writes returns once its rows are committed and fsynced, and writes all or nothing; a coroutine
    that is cancelled may have written. A full disk raises ResourceExhaustedError to the callers whose writes did not
    fit, and the store goes on. Methods are for one event loop; none blocks it. Times are seconds since the epoch.

    The constructor blocks: it locks the directory (ConflictError when another server has it), migrates the tables
    (VersionError when a newer farcall wrote them) and sweeps up after a crash. `now` and `steady` are the wall clock
    and one that never jumps. Results are kept for `results_seconds`, and up to `results_bytes` in all.
    """

    def __init__(
        self,
        directory: Path,
        *,
        results_seconds: float = RESULTS_KEPT_SECONDS,
        results_bytes: int = RESULTS_KEPT_BYTES,
        now: Callable[[], float] = time.time,
        steady: Callable[[], float] = uptime,
    ) -> None:
        self._directory = directory
        self.results_seconds = results_seconds
        self.results_bytes = results_bytes
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = StateLock(directory)
        except OSError as error:
            raise disk_error(error, directory) from error
        self._database = directory / "state.db"
        self.vault = Vault(directory / KEY_NAME)  # for what rows must not hold in clear
        try:
            connection = _open(self._database, self.vault)
            try:
                self._files = PayloadFiles(directory / "payloads")
                self._swept_files = self._files.sweep(lambda file: call_rows.is_file_named(connection, file))
                self._clock = Clock(now, steady, known=call_rows.newest_time(connection))
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            self._lock.release()
            raise disk_error(error, self._database) from error
        except BaseException:
            self._lock.release()
            raise
        self._connection = connection
        self._file_threads = ThreadPoolExecutor(2, thread_name_prefix="farcall-state-files")
        self._writer = Writer(connection, self._database, directory, self._remove_files)
        self._reader = Reader(self._database)
        self._closed = False

    async def close(self) -> None:
        """Commit what has been asked for, close, and release the directory. Later calls raise ConnectionError."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._file_threads.shutdown(wait=True)
        self._writer.close()
        self._reader.close()
        self._connection.close()
        self._lock.release()

    async def add_app(self, app: App) -> App:
        """Returns the app as stored. Raises AlreadyExistsError for a known id."""
        now = self._clock.now()
        return await self._write(lambda t: app_rows.insert_app(t, app, now), size=len(app.definition))

    async def set_app_state(self, app_id: str, state: AppState) -> App:
        """Raises NotFoundError, and ConflictError when the app has stopped: that is for good."""
        now = self._clock.now()
        return await self._write(lambda t: app_rows.update_state(t, app_id, state, now))

    async def set_app_definition(self, app_id: str, definition: bytes) -> None:
        """Raises NotFoundError."""
        await self._write(lambda t: app_rows.update_definition(t, app_id, definition), size=len(definition))

    async def app(self, app_id: str) -> App:
        """Raises NotFoundError."""
        return await self._reader.read(lambda c: app_rows.select_app(c, app_id))

    async def apps(self) -> list[App]:
        """All apps, oldest first, those that stopped within the last week included."""
        return await self._reader.read(app_rows.select_apps)

    async def put_secret(self, secret: Secret, *, replace: bool) -> Secret:
        """Returns the secret as stored. With `replace` one of that name keeps its id and the time when it was made,
        without it raises AlreadyExistsError."""
        now = self._clock.now()
        return await self._write(lambda t: secret_rows.put(t, secret, now, replace=replace), size=len(secret.sealed))

    async def delete_secret(self, name: str) -> None:
        """Raises NotFoundError."""
        await self._write(lambda t: secret_rows.delete(t, name))

    async def secret(self, name: str) -> Secret:
        """Raises NotFoundError."""
        return await self._reader.read(lambda c: secret_rows.select(c, name))

    async def secrets(self) -> list[Secret]:
        """All secrets, oldest first."""
        return await self._reader.read(secret_rows.select_all)

    async def add_call(self, call: Call, inputs: Sequence[bytes], *, bulk: bool = False) -> Call:
        """A call with its first inputs (indexes from 0). Returns the call as stored.

        A call with one input goes ahead of `bulk` writes. Raises AlreadyExistsError for a known id (a resubmission:
        it is durable), NotFoundError for an unknown app and ConflictError for a stopped one.
        """
        now = self._clock.now()
        return await self._write_payloads(
            inputs, lambda t, stored: call_rows.insert_call(t, call, stored, now), bulk=bulk or len(inputs) > 1
        )

    async def add_inputs(self, call: Call, inputs: Sequence[bytes], *, first_index: int) -> tuple[Call, list[int]]:
        """More inputs of a call of that id, app and function, with indexes from `first_index`; returns the call as
        stored and which were new. Indexes that exist stay as they are.

        Let the number per call be small (a few hundred): one call is one write, which single spawns wait for. Raises
        NotFoundError where the app has no such call, OutputExpiredError, or ConflictError when the call was cancelled
        or is one of another function.
        """
        return await self._write_payloads(
            inputs, lambda t, stored: call_rows.insert_inputs(t, call, stored, first_index), bulk=True
        )

    async def record_output(self, call_id: str, index: int, status: int, payload: bytes) -> bool:
        """Record an input's result. True when it was recorded; False when the input has one, was cancelled or expired.

        From then on the input is done, for good, and its own payload is no longer kept. Raises NotFoundError.
        """
        return bool(await self.record_outputs(call_id, [(index, status, payload)]))

    async def record_outputs(self, call_id: str, outputs: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """`record_output` for several inputs of a call, (index, status, payload) each: all or none of them. Returns the
        indexes of those that were recorded. More than one are `bulk`, as in `add_call`."""
        now = self._clock.now()

        def run(transaction: Transaction, stored: list[StoredPayload]) -> list[int]:
            placed = [(index, status, payload) for (index, status, _), payload in zip(outputs, stored, strict=True)]
            return call_rows.insert_outputs(transaction, call_id, placed, now)

        return await self._write_payloads([payload for _, _, payload in outputs], run, bulk=len(outputs) > 1)

    async def mark_running(self, call_id: str, indexes: Sequence[int]) -> None:
        """These inputs have been handed to containers. Nothing needs to wait for it: it is there to be shown."""
        await self._write(lambda t: call_rows.mark_running(t, call_id, indexes), size=8 * len(indexes), bulk=True)

    async def bump_attempt(self, call_id: str, index: int, *, lost: bool = False) -> tuple[int, int]:
        """An attempt ended without an output, and the input is pending again: (attempts, losses) now.

        An attempt that spent the retry budget resets the losses in a row; a `lost` one only counts as a loss. Raises
        NotFoundError, OutputExpiredError, or ConflictError when the input is done or cancelled.
        """
        return await self._write(lambda t: call_rows.bump_attempt(t, call_id, index, lost), bulk=True)

    async def cancel_call(self, call_id: str) -> int:
        """Cancel every input that has no output; returns how many. Outputs that arrive later are not recorded.

        Many are cancelled in several writes, the first of which cancels the call for good. Idempotent; a call that is
        done stays done. Raises NotFoundError or OutputExpiredError.
        """
        now = self._clock.now()
        total, is_all = await self._write(lambda t: call_rows.cancel(t, call_id, now))
        while not is_all:
            cancelled, is_all = await self._write(lambda t: call_rows.cancel(t, call_id, now), bulk=True)
            total += cancelled
        return total

    async def cancel_calls(self, app_id: str | None) -> AsyncIterator[str]:
        """`cancel_call` for every call of an app that has unfinished inputs; yields their ids. Without an app: for
        those that were being cancelled, or whose app had just stopped, when an earlier server was killed."""
        now = self._clock.now()
        while (cancelled := await self._write(lambda t: call_rows.cancel_some(t, app_id, now), bulk=True)) is not None:
            for call_id in cancelled:
                yield call_id

    async def call(self, call_id: str) -> Call:
        """Raises NotFoundError or OutputExpiredError."""
        return await self._reader.read(lambda c: call_rows.select_call(c, call_id))

    async def newest_calls(
        self, app_id: str | None, limit: int, *, unfinished: bool = False
    ) -> list[tuple[Call, int | None]]:
        """Calls of an app or of all, newest first, each with the number of inputs that failed, None where they are too
        many to count."""
        return await self._reader.read(lambda c: inspection.select_newest(c, app_id, limit, unfinished))

    async def inspect_call(self, call_id: str) -> tuple[Call, int | None]:
        """A call as `newest_calls` gives it. Raises NotFoundError or OutputExpiredError."""
        return await self._reader.read(lambda c: inspection.select_one(c, call_id))

    async def inspect_inputs(self, call_id: str, first: int, limit: int) -> list[InspectedInput]:
        """A call's inputs from number `first` on, with how they ended; none for an unknown call."""
        return await self._reader.read(lambda c: inspection.select_inputs(c, call_id, first, limit))

    async def output(self, call_id: str, index: int) -> Output | None:
        """The result of one input, or None while there is none.

        Raises NotFoundError, OutputExpiredError, or InputCancelledError when there will be none.
        """

        def read(connection: sqlite3.Connection) -> Output | None:
            found = call_rows.select_output(connection, call_id, index)
            if found is None:
                return None
            status, finished_at, file, data = found
            payload = self._payload(file, data)
            return Output(call_id=call_id, index=index, status=status, payload=payload, finished_at=finished_at)

        return await self._reader.read(_retried(read))

    async def pending_spans(self) -> AsyncIterator[PendingSpan]:
        """The unfinished inputs of all calls, by call and index, read a page of calls at a time."""
        after = 0
        while page := await self._reader.read(lambda c, after=after: call_rows.select_spans(c, after)):
            for found in page:
                yield found
            after = page[-1].span.number

    async def load(self, spans: Sequence[Span], most_bytes: int) -> tuple[list[int], list[LoadedInput]]:
        """The inputs of these spans that are unfinished still, in order, until their payloads have `most_bytes`.

        Returns how many inputs of each span have been looked at, and those found: what is missing is cancelled or done.
        """

        def read(connection: sqlite3.Connection) -> tuple[list[int], list[LoadedInput]]:
            looked_at: list[int] = []
            loaded: list[LoadedInput] = []
            size = 0
            for span in spans:
                for call_id, index, attempts, losses, file, data in call_rows.select_unfinished(connection, span):
                    if size >= most_bytes:
                        looked_at.append(index - span.first)
                        return looked_at, loaded
                    payload = self._payload(file, data)
                    loaded.append(LoadedInput(call_id, index, payload, attempts, losses))
                    size += len(payload)
                looked_at.append(span.end - span.first)
            return looked_at, loaded

        return await self._reader.read(_retried(read))

    async def input_payload(self, call_id: str, index: int) -> bytes:
        """Raises NotFoundError, OutputExpiredError, or ConflictError when the input is done or cancelled."""
        return await self._reader.read(
            _retried(lambda c: self._payload(*call_rows.select_input_payload(c, call_id, index)))
        )

    async def pending_calls(self, app_id: str | None = None) -> AsyncIterator[Call]:
        """Calls with unfinished inputs, oldest first, read a page at a time. Calls added meanwhile may be included."""
        after = 0
        while page := await self._reader.read(lambda c, after=after: call_rows.select_pending_calls(c, after, app_id)):
            for _, call in page:
                yield call
            after = page[-1][0]

    async def pending_inputs(self, call_id: str) -> AsyncIterator[Input]:
        """A call's unfinished inputs by index, without payloads, read a page at a time; none for an unknown call."""
        after = -1
        while page := await self._reader.read(
            lambda c, after=after: call_rows.select_pending_inputs(c, call_id, after)
        ):
            for found in page:
                yield found
            after = page[-1].index

    async def expire(self, before: float | None = None) -> int:
        """Drop the results of calls that finished before `before`, then of those that finished longest ago until all
        results together are no larger than the store may keep; returns how many calls.

        Afterwards those calls raise OutputExpiredError, and 30 days later NotFoundError. A call with unfinished inputs
        is never dropped. Apps that stopped before `before` and have no calls are dropped too. By default `before` is
        what the store was opened with, unless the wall clock has jumped within the last hour: then nothing is dropped.
        To be called about every ten minutes.
        """
        now = self._clock.now()
        if before is None:
            if not self._clock.is_settled():
                return 0
            await self._write(lambda t: call_rows.restamp(t, now), bulk=True)
            before = now - self.results_seconds
        total = 0
        while expired := await self._write(lambda t: call_rows.expire(t, before, now), bulk=True):
            total += expired
        while expired := await self._write(lambda t: call_rows.expire_excess(t, self.results_bytes, now), bulk=True):
            total += expired
        while await self._write(call_rows.sweep, bulk=True):
            pass
        await self._write(lambda t: call_rows.forget(t, now - TOMBSTONES_KEPT_SECONDS, before), bulk=True)
        return total

    def statistics(self) -> StateStatistics:
        size = 0
        for path in (self._database, self._database.with_name("state.db-wal")):
            size += path.stat().st_size if path.exists() else 0
        return StateStatistics(writer=self._writer.statistics(), swept_files=self._swept_files, database_bytes=size)

    async def _write(self, run: Callable[[Transaction], T], *, size: int = 0, bulk: bool = False) -> T:
        return await self._write_payloads((), lambda transaction, _: run(transaction), size=size, bulk=bulk)

    async def _write_payloads(
        self,
        payloads: Sequence[bytes],
        run: Callable[[Transaction, list[StoredPayload]], T],
        *,
        size: int = 0,
        bulk: bool = False,
    ) -> T:
        """Run the operation with the payloads, large ones in files by then; returns once it is committed."""
        if self._closed:
            raise closed_error(self._directory)
        stored = [StoredPayload(len(payload), None, payload) for payload in payloads]
        operation = Operation[T](
            run=lambda transaction: run(transaction, stored),
            future=asyncio.get_running_loop().create_future(),
            size=size + sum(min(payload.size, FILE_BYTES) + _ROW_BYTES for payload in stored),
            bulk=bulk,
        )
        if any(payload.size > FILE_BYTES for payload in stored):
            # The thread, not this coroutine, hands the operation on: if the coroutine is cancelled, either the rows
            # are written or the files are removed all the same.
            self._file_threads.submit(self._write_files, operation, stored)
        else:
            self._writer.submit(operation)
        return await operation.future

    def _write_files(self, operation: Operation[T], stored: list[StoredPayload]) -> None:
        names: list[str] = []
        try:
            for position, payload in enumerate(stored):
                if payload.size > FILE_BYTES and payload.data is not None:
                    names.append(self._files.write(payload.data))
                    stored[position] = StoredPayload(payload.size, names[-1], None)
        except OSError as error:
            operation.files = tuple(names)
            self._writer.fail(operation, disk_error(error, self._directory))
            return
        operation.files = tuple(names)
        self._writer.submit(operation)

    def _remove_files(self, names: Iterable[str]) -> None:
        names = tuple(names)
        if not names:
            return
        try:
            self._file_threads.submit(self._files.remove, names)  # unlinking a large file takes a while
        except RuntimeError:
            self._files.remove(names)  # the store is closing

    def _payload(self, file: str | None, data: bytes | None) -> bytes:
        if file is not None:
            return self._files.read(file)
        assert data is not None, "a kept payload is in its row or in a file"
        return data


def _retried(query: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    """A payload file may be removed after its row was read; reading the row again says why."""

    def run(connection: sqlite3.Connection) -> T:
        try:
            return query(connection)
        except FileNotFoundError:
            try:
                return query(connection)
            except FileNotFoundError as error:
                raise InternalError(f"a payload file of the state store is missing: {error.filename}") from error

    return run


def _open(database: Path, vault: Vault) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # After a flood the log goes back to this size instead of keeping its largest one.
        connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
        migrate(connection, database, vault)
    except BaseException:
        connection.close()
        raise
    return connection
