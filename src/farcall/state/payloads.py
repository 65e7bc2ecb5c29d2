"""Payloads too large for a row: one file each, beside the database.

A file is on disk before the row that names it and goes after it, so a crash can leave a file without a row (swept at
the next start) but never a row without its file.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# A larger payload would go through the write-ahead log and the database: two copies more than a file.
FILE_BYTES = 1024 * 1024


class PayloadFiles:
    """The directory of payload files. Blocking; for threads, not for the event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, payload: bytes) -> str:
        """Write and sync the payload; returns the file's name. Leaves nothing behind when it raises (OSError)."""
        name = secrets.token_hex(16)
        path = self._directory / name
        try:
            with path.open("xb", buffering=0) as file:
                view = memoryview(payload)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            self._sync_directory()
        except BaseException:
            self.remove([name])
            raise
        return name

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError when it was removed since its row was read."""
        return (self._directory / name).read_bytes()

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that no row names. One that cannot be removed is left to the next sweep."""
        for name in names:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()

    def sweep(self, is_named: Callable[[str], bool]) -> int:
        """Remove the files that a crash has left without a row; returns how many."""
        orphans = [name for name in self._names() if not is_named(name)]
        self.remove(orphans)
        return len(orphans)

    def _names(self) -> Iterator[str]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                yield entry.name

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
