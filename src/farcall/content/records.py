"""Records: small files that keep trees alive, and say what for."""

import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from farcall.content.disk import disk_error, sync_one, write_file
from farcall.errors import CorruptedError, InvalidError

_TOUCH = 10.0  # seconds; how stale the time of the last use may get
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Record(msgspec.Struct, frozen=True):
    """What keeps `trees` alive: an image, a step of a build, a version of a volume.

    `data` is what its maker wants to find again, anything that JSON can say. A `pinned` record is never dropped for
    lack of room. `used` (seconds since the epoch) is when it was last asked for; it is kept as the file's time.
    """

    kind: str
    key: str
    trees: tuple[str, ...] = ()
    data: dict[str, Any] = {}
    pinned: bool = False
    used: float = 0.0


class Records:
    """The records of a store: one JSON file for each, `<kind>/<key>`, replaced as a whole."""

    def __init__(self, root: Path, incoming: Path) -> None:
        self._root = root
        self._incoming = incoming

    def put(self, record: Record, *, durable: bool = False) -> None:
        """Write it, in place of one with the same kind and key: after a power cut, too, there is one or the other where
        it is `durable`. Raises what `disk_error` says."""
        path = self.path(record.kind, record.key)
        made = str(self._incoming / secrets.token_hex(8))
        encoded = msgspec.json.format(msgspec.json.encode(record)) + b"\n"
        try:
            path.parent.mkdir(exist_ok=True)
            write_file(made, encoded, 0o600)
            if durable:
                sync_one(made)
            os.rename(made, path)
            if durable:
                sync_one(path.parent)
        except OSError as error:
            raise disk_error(error, "writing", path) from error

    def get(self, kind: str, key: str) -> Record | None:
        """The record, None where there is none. Asking counts as use. Raises `CorruptedError`."""
        path = self.path(kind, key)
        record = self.at(path)
        if record is not None and time.time() - record.used > _TOUCH:
            try:
                os.utime(path)
            except FileNotFoundError:
                return None  # dropped since
        return record

    def delete(self, kind: str, key: str) -> bool:
        """Whether there was one."""
        try:
            self.path(kind, key).unlink()
        except FileNotFoundError:
            return False
        return True

    def all(self, kind: str | None = None) -> list[Record]:
        """All records, or those of one kind, least recently used first. Raises `CorruptedError`."""
        found = [record for path in self.files() if (record := self.at(path)) is not None]
        return sorted((record for record in found if kind in (None, record.kind)), key=lambda record: record.used)

    def files(self) -> Iterator[Path]:
        """The files of all records."""
        with os.scandir(self._root) as kinds:
            for kind in kinds:
                with os.scandir(kind) as entries:
                    yield from (Path(entry.path) for entry in entries)

    def at(self, path: Path) -> Record | None:
        """The record in a file, None where there is none. Raises `CorruptedError`."""
        try:
            used = path.stat().st_mtime
            encoded = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(error, "reading", path) from error
        try:
            record = msgspec.json.decode(encoded, type=Record)
        except msgspec.DecodeError as error:
            raise CorruptedError(
                f"the record {path} cannot be read: {error}. If what it stands for can be built again, remove the file"
            ) from None
        return msgspec.structs.replace(record, used=used)

    def path(self, kind: str, key: str) -> Path:
        """The file of a record. Raises `InvalidError` for what cannot name one."""
        for name in (kind, key):
            if not _NAME.fullmatch(name):
                raise InvalidError(
                    f"{name!r} cannot name a record: letters, digits, '.', '_' and '-', at most 200, no '.' first"
                )
        return self._root / kind / key
