"""Secrets in the database, sealed."""

import sqlite3
from difflib import get_close_matches

from farcall.errors import AlreadyExistsError, NotFoundError
from farcall.state.records import Secret
from farcall.state.writer import Transaction

_COLUMNS = "name, secret_id, keys, sealed, created_at, updated_at"


def put(transaction: Transaction, secret: Secret, now: float, *, replace: bool) -> Secret:
    known = transaction.execute("SELECT 1 FROM secrets WHERE name = ?", (secret.name,)).fetchone() is not None
    if known and not replace:
        raise AlreadyExistsError(
            f"there is a secret {secret.name!r} already. `farcall secret update {secret.name} KEY=-` changes some of "
            f"its values, `farcall secret create {secret.name} KEY=- --force` replaces all of them"
        )
    if known:
        transaction.execute(
            "UPDATE secrets SET keys = ?, sealed = ?, updated_at = ? WHERE name = ?",
            (" ".join(secret.keys), secret.sealed, now, secret.name),
        )
    else:
        transaction.execute(
            f"INSERT INTO secrets ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (secret.name, secret.secret_id, " ".join(secret.keys), secret.sealed, now, now),
        )
    return select(transaction, secret.name)


def delete(transaction: Transaction, name: str) -> None:
    if not transaction.execute("DELETE FROM secrets WHERE name = ?", (name,)).rowcount:
        raise _missing(transaction, name)


def select(source: sqlite3.Connection | Transaction, name: str) -> Secret:
    found = source.execute(f"SELECT {_COLUMNS} FROM secrets WHERE name = ?", (name,)).fetchone()
    if found is None:
        raise _missing(source, name)
    return _secret(found)


def select_all(connection: sqlite3.Connection) -> list[Secret]:
    return [_secret(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM secrets ORDER BY created_at, name")]


def _missing(source: sqlite3.Connection | Transaction, name: str) -> NotFoundError:
    near = get_close_matches(name, [known for (known,) in source.execute("SELECT name FROM secrets")], 3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return NotFoundError(f"there is no secret {name!r}{hint}")


def _secret(row: tuple[str, str, str, bytes, float, float]) -> Secret:
    name, secret_id, keys, sealed, created_at, updated_at = row
    return Secret(
        name=name,
        secret_id=secret_id,
        keys=tuple(keys.split()),
        sealed=sealed,
        created_at=created_at,
        updated_at=updated_at,
    )
