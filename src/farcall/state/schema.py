"""The tables, as migrations: `PRAGMA user_version` is the number of migrations that a database has been through."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from farcall.errors import VersionError
from farcall.state.vault import Vault

# A statement of SQL, or what needs more than that.
Step = str | Callable[[sqlite3.Connection, Vault], None]


def _seal_definitions(connection: sqlite3.Connection, vault: Vault) -> None:
    """Apps' definitions hold the values of secrets, and were kept as they are once."""
    for app_id, definition in connection.execute("SELECT app_id, definition FROM apps").fetchall():
        sealed = vault.seal(definition, definition_of(app_id))
        connection.execute("UPDATE apps SET definition = ? WHERE app_id = ?", (sealed, app_id))


def definition_of(app_id: str) -> str:
    """What an app's definition is sealed as."""
    return f"the definition of app {app_id}"


# A migration that has been released is never edited; a change of the tables is a new one at the end.
# `call` is the call's rowid: one small integer in a million inputs, where its id would be 30 bytes.
# A payload is either in the row or in the file that `file` names, never both.
MIGRATIONS: tuple[tuple[Step, ...], ...] = (
    (
        """CREATE TABLE apps (
            app_id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, definition BLOB NOT NULL,
            client_pid INTEGER, created_at REAL NOT NULL, stopped_at REAL)""",
        """CREATE TABLE calls (
            id INTEGER PRIMARY KEY AUTOINCREMENT, call_id TEXT NOT NULL UNIQUE, app_id TEXT NOT NULL,
            function_id TEXT NOT NULL, function_name TEXT NOT NULL, created_at REAL NOT NULL, status TEXT NOT NULL,
            num_inputs INTEGER NOT NULL, num_finished INTEGER NOT NULL, finished_at REAL)""",
        "CREATE INDEX calls_by_app ON calls (app_id)",
        "CREATE INDEX calls_pending ON calls (id) WHERE num_finished < num_inputs",
        """CREATE INDEX calls_finished ON calls (ifnull(finished_at, created_at))
            WHERE num_finished >= num_inputs""",
        """CREATE TABLE inputs (
            call INTEGER NOT NULL, position INTEGER NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL,
            losses INTEGER NOT NULL, size INTEGER NOT NULL, file TEXT, payload BLOB, PRIMARY KEY (call, position))""",
        "CREATE INDEX inputs_unfinished ON inputs (call, position) WHERE status IN ('pending', 'running')",
        "CREATE INDEX inputs_by_file ON inputs (file) WHERE file IS NOT NULL",
        """CREATE TABLE outputs (
            call INTEGER NOT NULL, position INTEGER NOT NULL, status INTEGER NOT NULL, finished_at REAL NOT NULL,
            file TEXT, payload BLOB, PRIMARY KEY (call, position))""",
        "CREATE INDEX outputs_by_file ON outputs (file) WHERE file IS NOT NULL",
        "CREATE TABLE tombstones (call_id TEXT PRIMARY KEY, expired_at REAL NOT NULL) WITHOUT ROWID",
        "CREATE INDEX tombstones_by_time ON tombstones (expired_at)",
    ),
    (
        """CREATE TABLE secrets (
            name TEXT PRIMARY KEY, secret_id TEXT NOT NULL, keys TEXT NOT NULL, sealed BLOB NOT NULL,
            created_at REAL NOT NULL, updated_at REAL NOT NULL)""",
        _seal_definitions,
    ),
    (
        "ALTER TABLE calls ADD COLUMN result_bytes INTEGER NOT NULL DEFAULT 0",
        """UPDATE calls SET result_bytes = ifnull(
            (SELECT sum(length(payload)) FROM outputs WHERE outputs.call = calls.id), 0)""",
        # Calls that have expired and whose inputs and outputs are still to be deleted, a few at a time.
        "CREATE TABLE remains (call INTEGER PRIMARY KEY)",
    ),
)


def migrate(
    connection: sqlite3.Connection, path: Path, vault: Vault, migrations: tuple[tuple[Step, ...], ...] = MIGRATIONS
) -> None:
    """Bring the database up to date, each migration in a transaction of its own. What one overwrites or deletes is
    nowhere in the database's files afterwards.

    Raises VersionError when a newer farcall has written it: its tables may mean something else by now.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise VersionError(
            f"the state database {path} was written by a newer farcall (schema {version}; this one knows "
            f"{len(migrations)}). Upgrade farcall, or use another state directory."
        )
    if version == len(migrations):
        return
    (usual,) = connection.execute("PRAGMA secure_delete").fetchone()
    connection.execute("PRAGMA secure_delete = ON")
    for number, steps in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in steps:
                if isinstance(step, str):
                    connection.execute(step)
                else:
                    step(connection, vault)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    connection.execute(f"PRAGMA secure_delete = {usual}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
