"""Calls, their inputs and their outputs in the database: one function for each thing that can happen to them."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from farcall.errors import AlreadyExistsError, ConflictError, InputCancelledError, NotFoundError, OutputExpiredError
from farcall.state.records import Call, Input, PendingSpan, Span
from farcall.state.writer import Transaction

PAGE = 1000  # rows
# Rows that one statement writes or looks for. Each statement lets go of the interpreter's lock and takes it again, so
# a row each would have the event loop wait for a flood, and the flood for the event loop.
_ROWS_AT_ONCE = (64, 8, 1)

CALL_COLUMNS = (
    "call_id, app_id, function_id, function_name, created_at, status, num_inputs, num_finished, finished_at, id"
)
_UNFINISHED = "status IN ('pending', 'running')"


T = TypeVar("T")


class StoredPayload(NamedTuple):
    """Where a payload is: in the row (`data`) or in a file."""

    size: int
    file: str | None
    data: bytes | None


def insert_call(transaction: Transaction, call: Call, payloads: Sequence[StoredPayload], now: float) -> Call:
    state = transaction.execute("SELECT state FROM apps WHERE app_id = ?", (call.app_id,)).fetchone()
    if state is None:
        raise NotFoundError(f"no app {call.app_id}: call {call.call_id} cannot be added to it.")
    if state[0] == "stopped":
        raise ConflictError(f"app {call.app_id} has stopped and takes no more calls. Run or deploy it again.")
    if _rowid(transaction, call.call_id) is not None or _is_tombstone(transaction, call.call_id):
        raise AlreadyExistsError(f"call {call.call_id} exists already.")
    rowid = transaction.execute(
        """INSERT INTO calls (call_id, app_id, function_id, function_name, created_at, status, num_inputs, num_finished)
           VALUES (?, ?, ?, ?, ?, 'pending', ?, 0)""",
        (call.call_id, call.app_id, call.function_id, call.function_name, now, len(payloads)),
    ).lastrowid
    assert rowid is not None, "an INSERT has a rowid"
    _insert_pending(transaction, rowid, enumerate(payloads))
    return select_call(transaction, call.call_id)


def insert_inputs(
    transaction: Transaction, call: Call, payloads: Sequence[StoredPayload], first_index: int
) -> tuple[Call, list[int]]:
    found = select_call(transaction, call.call_id)
    if found.app_id != call.app_id:
        raise NotFoundError(f"app {call.app_id} has no call {call.call_id}.")
    if found.function_id != call.function_id:
        raise ConflictError(f"call {call.call_id} is one of another function.")
    if found.status == "cancelled":
        raise ConflictError(f"call {call.call_id} was cancelled and takes no more inputs. Spawn a new one.")
    return found, _insert_inputs(transaction, found.number, payloads, first_index)


def _insert_inputs(
    transaction: Transaction, rowid: int, payloads: Sequence[StoredPayload], first_index: int
) -> list[int]:
    positions = range(first_index, first_index + len(payloads))
    found = transaction.execute(
        "SELECT position FROM inputs WHERE call = ? AND position >= ? AND position < ?",
        (rowid, positions.start, positions.stop),
    )
    there: set[int] = {position for (position,) in found}
    for position in there:
        payload = payloads[position - first_index]
        transaction.discard(payload.file)
    added = [position for position in positions if position not in there]
    _insert_pending(transaction, rowid, ((position, payloads[position - first_index]) for position in added))
    # A call that had finished waits again for its new inputs.
    transaction.execute(
        """UPDATE calls SET num_inputs = num_inputs + ?,
           status = CASE WHEN num_finished < num_inputs + ? THEN 'pending' ELSE status END WHERE id = ?""",
        (len(added), len(added), rowid),
    )
    return added


def _insert_pending(transaction: Transaction, rowid: int, inputs: Iterable[tuple[int, StoredPayload]]) -> None:
    _insert(transaction, "inputs", [(rowid, position, "pending", 0, 0, *payload) for position, payload in inputs])


def insert_outputs(
    transaction: Transaction, call_id: str, outputs: Sequence[tuple[int, int, StoredPayload]], now: float
) -> list[int]:
    """Each is (index, status, payload); returns the indexes of those that were recorded."""
    rowid = _rowid(transaction, call_id)
    if rowid is None:
        if not _is_tombstone(transaction, call_id):
            raise _no_call(call_id)
        for _, _, payload in outputs:
            transaction.discard(payload.file)
        return []
    recorded: list[int] = []
    for some in _in_statements(outputs):
        recorded += _insert_outputs(transaction, rowid, call_id, some, now)
    return recorded


def _insert_outputs(
    transaction: Transaction,
    rowid: int,
    call_id: str,
    outputs: Sequence[tuple[int, int, StoredPayload]],
    now: float,
) -> list[int]:
    """Records so many outputs of a call as one statement takes."""
    places = ", ".join("?" * len(outputs))
    found = {
        position: (status, file)
        for position, status, file in transaction.execute(
            f"SELECT position, status, file FROM inputs WHERE call = ? AND position IN ({places})",
            (rowid, *(index for index, _, _ in outputs)),
        )
    }
    recorded: dict[int, tuple[int, StoredPayload]] = {}
    for index, status, payload in outputs:
        if index not in found:
            raise _no_input(call_id, index)
        if index in recorded or found[index][0] in ("done", "cancelled"):
            transaction.discard(payload.file)
        else:
            recorded[index] = status, payload
    _insert(
        transaction,
        "outputs",
        [(rowid, index, status, now, payload.file, payload.data) for index, (status, payload) in recorded.items()],
    )
    for index in recorded:
        transaction.discard(found[index][1])
    for some in _in_statements(list(recorded)):
        # The inputs never run again: their payloads would only take up disk for as long as the results are kept.
        transaction.execute(
            f"""UPDATE inputs SET status = 'done', payload = NULL, file = NULL
                WHERE call = ? AND position IN ({", ".join("?" * len(some))})""",
            (rowid, *some),
        )
    transaction.execute(
        """UPDATE calls SET num_finished = num_finished + ?1, finished_at = ?2, result_bytes = result_bytes + ?3,
           status = CASE WHEN status = 'pending' AND num_finished + ?1 >= num_inputs THEN 'done' ELSE status END
           WHERE id = ?4 AND ?1 > 0""",
        (len(recorded), now, sum(payload.size for _, payload in recorded.values()), rowid),
    )
    return list(recorded)


def _insert(transaction: Transaction, table: str, rows: Sequence[Sequence[object]]) -> None:
    for some in _in_statements(rows):
        row = f"({', '.join('?' * len(some[0]))})"
        values = [value for row in some for value in row]
        transaction.execute(f"INSERT INTO {table} VALUES {', '.join([row] * len(some))}", values)


def _in_statements(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows in groups of few sizes, so that there are few statements to be prepared and kept."""
    at = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def cancel(transaction: Transaction, call_id: str, now: float, limit: int = PAGE) -> tuple[int, bool]:
    """Cancels up to `limit` unfinished inputs of a call that takes no more from now on; returns how many, and whether
    none is left."""
    rowid, status = _require(transaction, call_id)
    unfinished = transaction.execute(
        f"SELECT position, file FROM inputs WHERE call = ? AND {_UNFINISHED} ORDER BY position LIMIT ?",
        (rowid, limit + 1),
    ).fetchall()
    cancelled = unfinished[:limit]
    for _, file in cancelled:
        transaction.discard(file)
    if cancelled:
        transaction.execute(
            f"""UPDATE inputs SET status = 'cancelled', payload = NULL, file = NULL
                WHERE call = ? AND position <= ? AND {_UNFINISHED}""",
            (rowid, cancelled[-1][0]),
        )
    if cancelled or status == "pending":
        transaction.execute(
            "UPDATE calls SET status = 'cancelled', num_finished = num_finished + ?, finished_at = ? WHERE id = ?",
            (len(cancelled), now, rowid),
        )
    return len(cancelled), len(unfinished) <= limit


def mark_running(transaction: Transaction, call_id: str, indexes: Sequence[int]) -> None:
    rowid, _ = _require(transaction, call_id)
    transaction.executemany(
        "UPDATE inputs SET status = 'running' WHERE call = ? AND position = ? AND status = 'pending'",
        [(rowid, index) for index in indexes],
    )


def bump_attempt(transaction: Transaction, call_id: str, index: int, lost: bool) -> tuple[int, int]:
    rowid, _ = _require(transaction, call_id)
    counters = "losses = losses + 1" if lost else "attempts = attempts + 1, losses = 0"
    changed = transaction.execute(
        f"""UPDATE inputs SET status = 'pending', {counters}
            WHERE call = ? AND position = ? AND {_UNFINISHED}""",
        (rowid, index),
    ).rowcount
    found = transaction.execute(
        "SELECT status, attempts, losses FROM inputs WHERE call = ? AND position = ?", (rowid, index)
    ).fetchone()
    if found is None:
        raise _no_input(call_id, index)
    if not changed:
        raise ConflictError(f"input {index} of call {call_id} is {found[0]}: it has no further attempts.")
    return found[1], found[2]


def select_call(source: sqlite3.Connection | Transaction, call_id: str) -> Call:
    found = source.execute(f"SELECT {CALL_COLUMNS} FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    if found is None:
        raise _missing(source, call_id)
    return call_of(found)


def select_pending_calls(connection: sqlite3.Connection, after: int, app_id: str | None) -> list[tuple[int, Call]]:
    """The next page of calls with unfinished inputs, oldest first, each with the position to go on from."""
    rows = connection.execute(
        f"""SELECT id, {CALL_COLUMNS} FROM calls
            WHERE id > ? AND num_finished < num_inputs AND status = 'pending' AND app_id = ifnull(?, app_id)
            ORDER BY id LIMIT {PAGE}""",
        (after, app_id),
    )
    return [(row[0], call_of(row[1:])) for row in rows]


def select_pending_inputs(connection: sqlite3.Connection, call_id: str, after: int) -> list[Input]:
    """The next page of a call's unfinished inputs by index; none when the call is gone."""
    rows = connection.execute(
        f"""SELECT position, status, attempts, losses, size FROM inputs
            WHERE call = (SELECT id FROM calls WHERE call_id = ?) AND position > ? AND {_UNFINISHED}
            ORDER BY position LIMIT {PAGE}""",
        (call_id, after),
    )
    return [
        Input(call_id=call_id, index=index, status=status, attempts=attempts, losses=losses, size=size)
        for index, status, attempts, losses, size in rows
    ]


def select_spans(connection: sqlite3.Connection, after: int) -> list[PendingSpan]:
    """The unfinished inputs of the next page of calls with such, by call and index."""
    rows = connection.execute(
        f"""WITH page AS (SELECT id, app_id, function_id FROM calls
                WHERE id > ? AND num_finished < num_inputs AND status = 'pending' ORDER BY id LIMIT {PAGE}),
            numbered AS (SELECT call, position, position - row_number() OVER (PARTITION BY call ORDER BY position)
                AS span FROM inputs WHERE call IN (SELECT id FROM page) AND {_UNFINISHED})
            SELECT app_id, function_id, call, min(position), max(position) + 1 FROM numbered JOIN page ON page.id = call
            GROUP BY call, span ORDER BY call, min(position)""",
        (after,),
    )
    return [
        PendingSpan(app_id=app_id, function_id=function_id, span=Span(number, first, end))
        for app_id, function_id, number, first, end in rows
    ]


def select_unfinished(
    connection: sqlite3.Connection, span: Span
) -> Iterator[tuple[str, int, int, int, str | None, bytes | None]]:
    """(call_id, index, attempts, losses, file, payload) of the inputs of a span that are unfinished still."""
    return connection.execute(
        f"""SELECT (SELECT call_id FROM calls WHERE id = call), position, attempts, losses, file, payload
            FROM inputs WHERE call = ? AND position >= ? AND position < ? AND {_UNFINISHED} ORDER BY position""",
        (span.number, span.first, span.end),
    )


def cancel_some(transaction: Transaction, app_id: str | None, now: float, limit: int = PAGE) -> list[str] | None:
    """Cancels up to `limit` unfinished inputs of an app's calls; returns the calls that have none any more, None where
    none had. Without an app: of calls whose cancelling was begun and not ended."""
    chosen = (
        "app_id = ?1"
        if app_id is not None
        else ("?1 IS NULL AND (status = 'cancelled' OR app_id IN (SELECT app_id FROM apps WHERE state = 'stopped'))")
    )
    found = transaction.execute(
        f"SELECT call_id FROM calls WHERE num_finished < num_inputs AND {chosen} LIMIT 100", (app_id,)
    ).fetchall()
    over: list[str] = []
    for (call_id,) in found:
        cancelled, is_all = cancel(transaction, call_id, now, limit)
        if not is_all:
            break
        over.append(call_id)
        limit -= cancelled
    return over if found else None


def select_input_payload(connection: sqlite3.Connection, call_id: str, index: int) -> tuple[str | None, bytes | None]:
    rowid, _ = _require(connection, call_id)
    found = connection.execute(
        "SELECT status, file, payload FROM inputs WHERE call = ? AND position = ?", (rowid, index)
    ).fetchone()
    if found is None:
        raise _no_input(call_id, index)
    if found[0] in ("done", "cancelled"):
        raise ConflictError(f"input {index} of call {call_id} is {found[0]}: its arguments are no longer kept.")
    return found[1], found[2]


def select_output(
    connection: sqlite3.Connection, call_id: str, index: int
) -> tuple[int, float, str | None, bytes | None] | None:
    """(status, finished_at, file, payload), or None while there is none yet."""
    rowid, _ = _require(connection, call_id)
    found = connection.execute(
        "SELECT status, finished_at, file, payload FROM outputs WHERE call = ? AND position = ?", (rowid, index)
    ).fetchone()
    if found is not None:
        return found
    status = connection.execute("SELECT status FROM inputs WHERE call = ? AND position = ?", (rowid, index)).fetchone()
    if status is None:
        raise _no_input(call_id, index)
    if status[0] == "cancelled":
        raise InputCancelledError(f"input {index} of call {call_id} was cancelled before it had a result.")
    return None


def expire(transaction: Transaction, before: float, now: float, limit: int = 100) -> int:
    """Turn up to `limit` calls that finished before `before` into tombstones; returns how many."""
    rows = transaction.execute(
        """SELECT id, call_id FROM calls
           WHERE num_finished >= num_inputs AND ifnull(finished_at, created_at) < ? LIMIT ?""",
        (before, limit),
    ).fetchall()
    for rowid, call_id in rows:
        _bury(transaction, rowid, call_id, now)
    return len(rows)


def expire_excess(transaction: Transaction, most_bytes: int, now: float, limit: int = 100) -> int:
    """Turn up to `limit` calls into tombstones, those that finished longest ago first, until all results together have
    at most `most_bytes`; returns how many."""
    (total,) = transaction.execute("SELECT ifnull(sum(result_bytes), 0) FROM calls").fetchone()
    if total <= most_bytes:
        return 0
    expired = 0
    for rowid, call_id, size in transaction.execute(
        """SELECT id, call_id, result_bytes FROM calls WHERE num_finished >= num_inputs
           ORDER BY ifnull(finished_at, created_at) LIMIT ?""",
        (limit,),
    ).fetchall():
        if total <= most_bytes:
            break
        _bury(transaction, rowid, call_id, now)
        total -= size
        expired += 1
    return expired


def _bury(transaction: Transaction, rowid: int, call_id: str, now: float) -> None:
    transaction.execute("DELETE FROM calls WHERE id = ?", (rowid,))
    transaction.execute("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", (call_id, now))
    transaction.execute("INSERT INTO remains VALUES (?)", (rowid,))


def sweep(transaction: Transaction, limit: int = PAGE) -> int:
    """Delete up to `limit` inputs, and as many outputs, of a call that has expired; returns how many of both, 0 when
    nothing is left of any."""
    found = transaction.execute("SELECT call FROM remains LIMIT 1").fetchone()
    if found is None:
        return 0
    swept = 0
    for table in ("inputs", "outputs"):
        rows = transaction.execute(
            f"SELECT rowid, file FROM {table} WHERE call = ? LIMIT ?", (*found, limit)
        ).fetchall()
        for _, file in rows:
            transaction.discard(file)
        transaction.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(rowid,) for rowid, _ in rows])
        swept += len(rows)
    if swept < limit:  # of neither table there were more
        transaction.execute("DELETE FROM remains WHERE call = ?", found)
    return max(swept, 1)


def forget(transaction: Transaction, tombstones_before: float, apps_before: float) -> None:
    """Delete tombstones made before the one time, and apps without calls that stopped before the other."""
    transaction.execute("DELETE FROM tombstones WHERE expired_at < ?", (tombstones_before,))
    transaction.execute(
        """DELETE FROM apps WHERE state = 'stopped' AND stopped_at < ?
           AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.app_id = apps.app_id)""",
        (apps_before,),
    )


def restamp(transaction: Transaction, latest: float) -> None:
    """Times after `latest` were written by a clock that ran ahead; without this they would be kept until it comes."""
    transaction.execute("UPDATE calls SET finished_at = ? WHERE finished_at > ?", (latest, latest))
    transaction.execute("UPDATE calls SET created_at = ? WHERE created_at > ?", (latest, latest))
    transaction.execute("UPDATE tombstones SET expired_at = ? WHERE expired_at > ?", (latest, latest))
    transaction.execute("UPDATE apps SET stopped_at = ? WHERE stopped_at > ?", (latest, latest))


def is_file_named(connection: sqlite3.Connection, file: str) -> bool:
    """Whether a row names this payload file."""
    found = connection.execute(
        "SELECT 1 FROM inputs WHERE file = ? UNION ALL SELECT 1 FROM outputs WHERE file = ? LIMIT 1", (file, file)
    )
    return found.fetchone() is not None


def newest_time(connection: sqlite3.Connection) -> float | None:
    """The newest time in the store."""
    return connection.execute(
        "SELECT max(t) FROM (SELECT max(created_at) t FROM apps UNION ALL SELECT max(created_at) FROM calls"
        " UNION ALL SELECT max(finished_at) FROM calls)"
    ).fetchone()[0]


def call_of(row: Sequence[object]) -> Call:
    """The call in a row of CALL_COLUMNS."""
    return Call(**dict(zip(Call.__struct_fields__, row, strict=True)))  # pyright: ignore[reportArgumentType]


def _rowid(source: sqlite3.Connection | Transaction, call_id: str) -> int | None:
    found = source.execute("SELECT id FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    return None if found is None else found[0]


def _require(source: sqlite3.Connection | Transaction, call_id: str) -> tuple[int, str]:
    """(rowid, status) of a call; OutputExpiredError or NotFoundError when there is none."""
    found = source.execute("SELECT id, status FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    if found is None:
        raise _missing(source, call_id)
    return found


def _is_tombstone(source: sqlite3.Connection | Transaction, call_id: str) -> bool:
    return source.execute("SELECT 1 FROM tombstones WHERE call_id = ?", (call_id,)).fetchone() is not None


def _missing(source: sqlite3.Connection | Transaction, call_id: str) -> Exception:
    if _is_tombstone(source, call_id):
        return OutputExpiredError(
            f"the results of call {call_id} have expired; the settings results_kept and results_size say how long they "
            "are kept and how large all together may be (`farcall config show`). Spawn it again."
        )
    return _no_call(call_id)


def _no_call(call_id: str) -> NotFoundError:
    return NotFoundError(f"no call {call_id} here. Check the id, and that this is the server that it was spawned on.")


def _no_input(call_id: str, index: int) -> NotFoundError:
    return NotFoundError(f"call {call_id} has no input {index}.")
