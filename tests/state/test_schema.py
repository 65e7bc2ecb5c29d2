"""Migrations: data goes through them, a failed one leaves the last good version, a newer database is left alone."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from farcall.errors import InternalError, VersionError
from farcall.state import StateStore
from farcall.state.schema import MIGRATIONS, definition_of, migrate
from farcall.state.vault import Vault

from .conftest import Store

FIRST = ("CREATE TABLE things (name TEXT)",)
SECOND = ("ALTER TABLE things ADD COLUMN size INTEGER", "UPDATE things SET size = length(name)")
BROKEN = ("CREATE TABLE more (name TEXT)", "INSERT INTO missing VALUES (1)")


def version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def test_each_migration_runs_once_and_keeps_the_data(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    vault = Vault(tmp_path / "key")
    migrate(connection, tmp_path, vault, (FIRST,))
    connection.execute("INSERT INTO things VALUES ('abc')")
    for _ in range(2):
        migrate(connection, tmp_path, vault, (FIRST, SECOND))
    assert connection.execute("SELECT * FROM things").fetchall() == [("abc", 3)]
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        migrate(connection, tmp_path, vault, (FIRST, SECOND, BROKEN))
    assert version(connection) == 2
    assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (1,)
    connection.close()


def test_definitions_that_were_kept_as_they_are_get_sealed(tmp_path: Path) -> None:
    """A database from before apps' definitions were sealed; they hold the values of secrets."""
    needle = b"needle-2f1c"
    vault = Vault(tmp_path / "secrets.key")
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    migrate(connection, tmp_path, vault, MIGRATIONS[:1])
    definitions = {"ap-small": b"\x84" + needle, "ap-large": needle + bytes(100_000) + needle}
    for app_id, definition in definitions.items():
        connection.execute("INSERT INTO apps VALUES (?, 'name', 'detached', ?, 1, 1.0, NULL)", (app_id, definition))
    connection.close()
    assert needle in (tmp_path / "state.db").read_bytes()

    state = StateStore(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"state.db", "state.db-wal", "secrets.key"} <= {path.name for path in files}
    assert not [path for path in files if needle in path.read_bytes()]
    apps = asyncio.run(state.apps())
    assert {app.app_id: state.vault.open(app.definition, definition_of(app.app_id)) for app in apps} == definitions
    asyncio.run(state.close())


def test_a_newer_database_is_refused_and_left_alone(store: Store) -> None:
    store.run(store.state.close())
    path = store.directory / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(VersionError, match="newer farcall"):
        StateStore(store.directory)
    assert path.read_bytes() == before
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    store.reopen()  # the lock was released


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database at all, " * 1000)
    with pytest.raises(InternalError, match=r"state\.db is damaged"):
        StateStore(tmp_path)
