"""A directory as a tier: a disk that several machines mount, or one that is carried around."""

import os
import secrets
from pathlib import Path

from farcall.content.disk import disk_error, sync_one, write_file
from farcall.errors import NotFoundError


class DirectoryTier:
    """Blobs as files beneath a directory."""

    def __init__(self, root: Path) -> None:
        """`root` is made when something is first put there."""
        self.root = root

    @property
    def title(self) -> str:
        return f"the directory {self.root}"

    def get(self, name: str) -> bytes:
        path = self.root / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{self.title} has no {name}") from None
        except OSError as error:
            raise disk_error(error, "reading", path) from error

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        made = path.parent / f".{secrets.token_hex(8)}"  # no blob's name begins so
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Who puts it notes that it is here, and would not look again: a power cut must not take it back.
            write_file(str(made), data, 0o644, synced=True)
            os.rename(made, path)
            sync_one(path.parent)
        except OSError as error:
            raise disk_error(error, "writing", path) from error
