"""What a volume's files are, over the connection: listed, read, and put in as one change."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator, Iterable

import msgspec

from farcall import errors
from farcall.sdk import client as clients
from farcall.wire.memory import INLINE_LIMIT, to_memory
from farcall.wire.volumes import (
    AddedFile,
    AddVolumeFiles,
    CommitVolume,
    GetVolume,
    ReadVolume,
    VolumeChanges,
    VolumeEntry,
    VolumeReport,
    VolumeVersion,
)

CHUNK_BYTES = 8 * 2**20
_INLINE = 8 * 1024  # bytes; what is longer is handed over as a file
_BATCH_BYTES, _BATCH_FILES = 128 * 1024, 32

_added = msgspec.msgpack.Decoder(list[AddedFile]).decode
_version = msgspec.msgpack.Decoder(VolumeVersion).decode
_report = msgspec.msgpack.Decoder(VolumeReport).decode


def newest(name: str, known: str = "") -> VolumeVersion:
    """The newest version of a volume; without entries where that is the `known` one. Raises NotFoundError."""
    answer, _ = clients.current().request(lambda seq: GetVolume(seq, name, known))
    return _version(answer.body)


def version(name: str, version_id: str) -> VolumeVersion:
    """The version that this container has started with."""
    answer, _ = clients.current().request(lambda seq: GetVolume(seq, name, version=version_id))
    return _version(answer.body)


def read(name: str, entry: VolumeEntry) -> Generator[bytes]:
    """What a file holds that `newest` has shown, in chunks."""
    offset = 0
    while offset < entry.size:
        answer, _ = clients.current().request(
            lambda seq, at=offset: ReadVolume(seq, name, entry.digest, at, min(CHUNK_BYTES, entry.size - at))
        )
        if not answer.body:
            raise errors.ContentError(f"{name}: a file of {entry.size:,} bytes ends after {offset:,}")
        yield answer.body
        offset += len(answer.body)


class Upload:
    """Files on their way into a volume: `add` them, then `commit` once. Without a commit nothing of it ever was."""

    def __init__(self) -> None:
        self._batch = secrets.token_hex(8)
        self._paths: list[bytes] = []
        self._data: list[bytes] = []
        self._fds: list[int] = []
        self._counts: list[int] = []
        self._size = 0
        self.added: dict[bytes, AddedFile] = {}

    def add(self, path: bytes, fd: int) -> None:
        """What an open regular file holds, to be named `path`. Takes over the descriptor. OSError."""
        try:
            data = os.pread(fd, _INLINE + 1, 0)
        except BaseException:
            os.close(fd)
            raise
        if len(data) <= _INLINE:
            os.close(fd)
            self._data.append(data)
            self._size += len(data)
        else:
            self._data.append(b"")
            self._fds.append(fd)
        self._counts.append(int(len(data) > _INLINE))
        self._paths.append(path)
        if self._size >= _BATCH_BYTES or len(self._fds) >= _BATCH_FILES or len(self._paths) >= 4096:
            self._send()

    def finish(self) -> None:
        """All that was added is stored, its digests in `added`."""
        self._send()

    def commit(
        self, name: str, entries: Iterable[VolumeEntry], removed: Iterable[bytes] = (), *, only_new: bool = False
    ) -> VolumeReport:
        """Makes the change."""
        changes = msgspec.msgpack.encode(VolumeChanges(tuple(entries), tuple(removed), only_new))
        if len(changes) <= INLINE_LIMIT:
            answer, _ = clients.current().request(lambda seq: CommitVolume(seq, name, self._batch, changes))
            return _report(answer.body)
        fd = to_memory(changes)
        try:
            answer, _ = clients.current().request(lambda seq: CommitVolume(seq, name, self._batch, b"", 1), (fd,))
        finally:
            os.close(fd)
        return _report(answer.body)

    def close(self) -> None:
        """Lets go of what was not sent."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _send(self) -> None:
        if not self._paths:
            return
        data, counts, fds = self._data, self._counts, tuple(self._fds)
        answer, _ = clients.current().request(lambda seq: AddVolumeFiles(seq, self._batch, data, counts), fds)
        self.added.update(zip(self._paths, _added(answer.body), strict=True))
        self.close()
        self._paths, self._data, self._counts, self._size = [], [], [], 0


def open_regular(path: bytes | str) -> tuple[int, os.stat_result] | None:
    """A file opened for reading, and its status; None where that is no regular file. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status
    os.close(fd)
    return None
