"""What a directory looked like when it was last taken in, so that files that have not changed are not read again."""

import contextlib
import hashlib
import os
import secrets
import zlib
from pathlib import Path

import msgspec

from farcall.content.disk import write_file

KEPT_DIRECTORIES = 200  # how many directories are remembered; the least recently used go
SETTLED_NS = 20_000_000  # a file changed less than this before it was looked at may change again at the same time
COARSE_SETTLED_NS = 2_000_000_000  # the same, where the file system knows whole seconds only, or two

_MAGIC = b"farcall stat cache 1\n"


class KnownFile(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A name as it was: its inode and times say whether it is still the same."""

    inode: int
    ctime_ns: int
    mtime_ns: int
    size: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "KnownFile":
        """A name as it is."""
        return cls(status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_mode)

    def is_still(self, status: os.stat_result) -> bool:
        """Whether nothing has touched it since."""
        return (
            self.ctime_ns == status.st_ctime_ns
            and self.mtime_ns == status.st_mtime_ns
            and self.inode == status.st_ino
            and self.size == status.st_size
            and self.mode == status.st_mode
        )


class Known(msgspec.Struct, array_like=True, frozen=True):
    """A directory as it was: the tree that was made of it, and its names. What is not among `files` was too new to tell
    from what it may become."""

    tree_id: str
    files: dict[bytes, KnownFile]


class StatCache:
    """A directory of files that may be deleted at any time: one for each directory (and way) that was taken in.

    Failures to read or write are nobody's concern: what is not known is read again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, key: str) -> Known | None:
        """What is known about `key`."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        body = memoryview(data)[len(_MAGIC) + 4 :]
        if not data.startswith(_MAGIC) or zlib.crc32(body) != int.from_bytes(data[len(_MAGIC) :][:4], "little"):
            return None
        try:
            return msgspec.msgpack.decode(body, type=Known)
        except msgspec.DecodeError:
            return None

    def save(self, key: str, known: Known) -> None:
        """Remember it, in place of what was known."""
        body = msgspec.msgpack.encode(known)
        made = f"{self._path(key)}.{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(made, _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body, 0o600)
            os.rename(made, self._path(key))
            self._prune()

    def _path(self, key: str) -> Path:
        return self._root / hashlib.sha256(os.fsencode(key)).hexdigest()[:32]

    def _prune(self) -> None:
        with os.scandir(self._root) as entries:
            found = [(entry.stat().st_mtime, entry.path) for entry in entries]
        for _, path in sorted(found)[:-KEPT_DIRECTORIES]:
            os.unlink(path)


def is_settled(status: os.stat_result, looked_at_ns: int) -> bool:
    """Whether a later change of the file will show in its times, by the file system's resolution."""
    latest = max(status.st_ctime_ns, status.st_mtime_ns)
    resolution = COARSE_SETTLED_NS if status.st_ctime_ns % 1_000_000_000 == 0 else SETTLED_NS
    return latest < looked_at_ns - resolution
