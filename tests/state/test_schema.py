"""Migrations: data goes through them, a failed one leaves the last good version, a newer database is left alone."""

import sqlite3
from pathlib import Path

import pytest

from farcall.errors import InternalError, VersionError
from farcall.state import StateStore
from farcall.state.schema import MIGRATIONS, migrate

from .conftest import Store

FIRST = ("CREATE TABLE things (name TEXT)",)
SECOND = ("ALTER TABLE things ADD COLUMN size INTEGER", "UPDATE things SET size = length(name)")
BROKEN = ("CREATE TABLE more (name TEXT)", "INSERT INTO missing VALUES (1)")


def version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def test_each_migration_runs_once_and_keeps_the_data(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    migrate(connection, tmp_path, (FIRST,))
    connection.execute("INSERT INTO things VALUES ('abc')")
    for _ in range(2):
        migrate(connection, tmp_path, (FIRST, SECOND))
    assert connection.execute("SELECT * FROM things").fetchall() == [("abc", 3)]
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        migrate(connection, tmp_path, (FIRST, SECOND, BROKEN))
    assert version(connection) == 2
    assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (1,)
    connection.close()


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
