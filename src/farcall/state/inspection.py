"""Looking at calls in the database, for people."""

import sqlite3

from farcall.state.calls import CALL_COLUMNS, call_of, select_call
from farcall.state.records import Call, InspectedInput

COUNTED_INPUTS = 10_000  # of a call, up to which its failures are counted

_FAILURES = (1, 2)  # the wire's EXCEPTION and PLATFORM_ERROR
_PLATFORM_ERROR = 2

_FAILED = f"""CASE WHEN num_inputs <= {COUNTED_INPUTS} THEN
    (SELECT count(*) FROM outputs WHERE outputs.call = calls.id AND outputs.status IN {_FAILURES}) END"""


def select_newest(
    connection: sqlite3.Connection, app_id: str | None, limit: int, unfinished: bool
) -> list[tuple[Call, int | None]]:
    """Calls, newest first, each with the number of its inputs that failed; None where they are too many to count."""
    condition = "num_finished < num_inputs" if unfinished else "TRUE"
    rows = connection.execute(
        f"""SELECT {_FAILED}, {CALL_COLUMNS} FROM calls
            WHERE {condition} AND (?1 IS NULL OR app_id = ?1) ORDER BY id DESC LIMIT ?2""",
        (app_id, limit),
    )
    return [(call_of(row[1:]), row[0]) for row in rows]


def select_one(connection: sqlite3.Connection, call_id: str) -> tuple[Call, int | None]:
    """A call with the number of its inputs that failed. Raises NotFoundError and OutputExpiredError."""
    call = select_call(connection, call_id)
    (failed,) = connection.execute(f"SELECT {_FAILED} FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    return call, failed


def select_inputs(connection: sqlite3.Connection, call_id: str, first: int, limit: int) -> list[InspectedInput]:
    """Inputs from number `first` on, with how they ended."""
    rows = connection.execute(
        f"""SELECT i.position, i.status, i.attempts, o.status, o.finished_at,
                CASE WHEN o.status = {_PLATFORM_ERROR} THEN o.payload END
            FROM inputs i LEFT JOIN outputs o ON o.call = i.call AND o.position = i.position
            WHERE i.call = (SELECT id FROM calls WHERE call_id = ?) AND i.position >= ?
            ORDER BY i.position LIMIT ?""",
        (call_id, first, limit),
    )
    return [InspectedInput(*row) for row in rows]
