"""Apps in the database."""

import sqlite3

from farcall.errors import AlreadyExistsError, ConflictError, NotFoundError
from farcall.state.records import App, AppState
from farcall.state.writer import Transaction

_COLUMNS = "app_id, name, state, definition, client_pid, created_at, stopped_at"


def insert_app(transaction: Transaction, app: App, now: float) -> App:
    if transaction.execute("SELECT 1 FROM apps WHERE app_id = ?", (app.app_id,)).fetchone():
        raise AlreadyExistsError(f"app {app.app_id} exists already.")
    stopped_at = now if app.state == "stopped" else None
    transaction.execute(
        f"INSERT INTO apps ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (app.app_id, app.name, app.state, app.definition, app.client_pid, now, stopped_at),
    )
    return select_app(transaction, app.app_id)


def update_state(transaction: Transaction, app_id: str, state: AppState, now: float) -> App:
    app = select_app(transaction, app_id)
    if app.state == state:
        return app
    if app.state == "stopped":
        raise ConflictError(f"app {app_id} ({app.name}) has stopped and cannot become {state}. Run or deploy it again.")
    transaction.execute(
        "UPDATE apps SET state = ?, stopped_at = ? WHERE app_id = ?",
        (state, now if state == "stopped" else None, app_id),
    )
    return select_app(transaction, app_id)


def update_definition(transaction: Transaction, app_id: str, definition: bytes) -> None:
    select_app(transaction, app_id)
    transaction.execute("UPDATE apps SET definition = ? WHERE app_id = ?", (definition, app_id))


def select_app(source: sqlite3.Connection | Transaction, app_id: str) -> App:
    found = source.execute(f"SELECT {_COLUMNS} FROM apps WHERE app_id = ?", (app_id,)).fetchone()
    if found is None:
        raise NotFoundError(f"no app {app_id} here.")
    return _app(found)


def select_apps(connection: sqlite3.Connection) -> list[App]:
    return [_app(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM apps ORDER BY created_at, rowid")]


def _app(row: tuple[str, str, AppState, bytes, int | None, float, float | None]) -> App:
    app_id, name, state, definition, client_pid, created_at, stopped_at = row
    return App(
        app_id=app_id,
        name=name,
        state=state,
        definition=definition,
        client_pid=client_pid,
        created_at=created_at,
        stopped_at=stopped_at,
    )
