"""`Volume.batch_upload`: files that are put into a volume as one change."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from typing import IO, TYPE_CHECKING, NamedTuple

from farcall.errors import InvalidError, NotFoundError
from farcall.sdk.volume_transfer import Upload, open_regular
from farcall.wire.memory import new_memory
from farcall.wire.volumes import VolumeEntry

if TYPE_CHECKING:
    from types import TracebackType

    from farcall.sdk.volume import Volume


class _File(NamedTuple):
    source: str | int  # a path, or a memory file that is ours
    mode: int | None


class VolumeUpload:
    """What `Volume.batch_upload` gives: a context manager that takes files, and puts them in at its end."""

    def __init__(self, volume: Volume, force: bool) -> None:
        self._volume = volume
        self._force = force
        self._files: dict[bytes, _File] = {}
        self._others: dict[bytes, VolumeEntry] = {}  # directories and symlinks

    def put_file(
        self, local_file: str | os.PathLike[str] | IO[bytes], remote_path: str, mode: int | None = None
    ) -> None:
        """Adds a local file, or what an open binary one yields from where it stands; `mode` are its permissions, else
        those that it has, or 0644. Raises NotFoundError for one that does not exist."""
        place = place_of(remote_path)
        if not place or str(remote_path).endswith("/"):
            raise InvalidError(f"put_file: {remote_path!r} is a directory; say what the file is to be named there")
        if isinstance(local_file, str | os.PathLike):
            path = os.fspath(local_file)
            if not os.path.isfile(path):
                found = "is a directory; use put_directory" if os.path.isdir(path) else "does not exist, or is no file"
                raise NotFoundError(f"put_file: {path} {found}")
            self._take(place, _File(path, mode))
            return
        fd = new_memory()
        with open(fd, "wb", closefd=False) as memory:
            shutil.copyfileobj(local_file, memory)
        self._take(place, _File(fd, 0o644 if mode is None else mode))

    def put_directory(self, local_path: str | os.PathLike[str], remote_path: str, recursive: bool = True) -> None:
        """Adds what is in a local directory, to be in the directory `remote_path`. Symlinks stay what they are; devices
        and sockets are left out. Raises NotFoundError."""
        root = os.fspath(local_path)
        if not os.path.isdir(root):
            raise NotFoundError(f"put_directory: there is no directory {root}")
        base = place_of(remote_path)
        for folder, folders, files in os.walk(root):
            inside = os.path.relpath(folder, root)
            place = base if inside == "." else os.path.join(base, os.fsencode(inside))
            if place:
                self._others[place] = _described(place, os.stat(folder))
            for name in [*files, *(one for one in folders if os.path.islink(os.path.join(folder, one)))]:
                path, target = os.path.join(folder, name), os.path.join(place, os.fsencode(name))
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    self._others[target] = _described(target, status, os.fsencode(os.readlink(path)))
                elif stat.S_ISREG(status.st_mode):
                    self._take(target, _File(path, None))
            if not recursive:
                break

    def __enter__(self) -> VolumeUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from farcall.sdk import local

        local.only_with_server("Volume.batch_upload")
        try:
            if kind is None:
                self._put()
        finally:
            for file in self._files.values():
                if isinstance(file.source, int):
                    os.close(file.source)
            self._files.clear()

    async def __aenter__(self) -> VolumeUpload:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def _take(self, place: bytes, file: _File) -> None:
        before = self._files.pop(place, None)
        if before is not None and isinstance(before.source, int):
            os.close(before.source)
        self._files[place] = file

    def _put(self) -> None:
        self._volume.ensure()
        upload = Upload()
        statuses: dict[bytes, os.stat_result] = {}
        try:
            for place, file in self._files.items():
                fd, statuses[place] = _opened(file.source)
                upload.add(place, fd)
            upload.finish()
            entries = list(self._others.values())
            for place, file in self._files.items():
                status, added = statuses[place], upload.added[place]
                mode = stat.S_IMODE(status.st_mode) if file.mode is None else file.mode & 0o7777
                is_local = isinstance(file.source, str)
                mtime_ns = status.st_mtime_ns if is_local else time.time_ns()
                entries.append(VolumeEntry(place, stat.S_IFREG | mode, 0, 0, mtime_ns, added.size, added.digest))
            upload.commit(self._volume.name, entries, only_new=not self._force)
        finally:
            upload.close()


def place_of(path: str | os.PathLike[str]) -> bytes:
    """A path in a volume, as volumes name it: relative, b"" the volume itself. Raises InvalidError where it leads
    out."""
    text = os.fspath(path)
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names or "\0" in text:
        raise InvalidError(f"{text!r} is no plain path in a volume")
    return os.fsencode("/".join(names))


def _opened(source: str | int) -> tuple[int, os.stat_result]:
    if isinstance(source, int):
        return os.dup(source), os.fstat(source)
    try:
        opened = open_regular(source)
    except OSError as error:
        raise NotFoundError(f"{source} cannot be read: {error.strerror}") from None
    if opened is None:
        raise InvalidError(f"{source} is no regular file any more")
    return opened


def _described(place: bytes, status: os.stat_result, target: bytes = b"") -> VolumeEntry:
    return VolumeEntry(place, status.st_mode, 0, 0, status.st_mtime_ns, target=target)
