"""`Volume`: a file system that containers share."""

from __future__ import annotations

import asyncio
import os
import posixpath
import secrets
import stat
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from datetime import datetime
from functools import wraps
from pathlib import PurePosixPath
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import msgspec

from farcall.errors import FileNotFoundError, InvalidError, NotFoundError
from farcall.sdk.asking import Asking, asks
from farcall.sdk.environment import only_main
from farcall.sdk.twin import stream_twin, twin
from farcall.sdk.types import FileEntry, FileEntryType, VolumeInfo
from farcall.sdk.unimplemented import refuse
from farcall.sdk.volume_upload import VolumeUpload, place_of
from farcall.spec.volume import VolumeSpec, check_name
from farcall.wire.volumes import (
    CreateVolume,
    DeleteVolume,
    ListVolumes,
    RenameVolume,
    VolumeEntry,
    VolumeReport,
)

__all__ = ["Volume"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
_END = object()
_KINDS = {
    stat.S_IFREG: FileEntryType.FILE,
    stat.S_IFDIR: FileEntryType.DIRECTORY,
    stat.S_IFLNK: FileEntryType.SYMLINK,
}


def _in_thread(method: Callable[Concatenate[S, P], R]) -> twin[S, P, R]:
    """Makes a blocking method one that can be awaited: it then runs in a thread."""

    @wraps(method)
    def blocking(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        from farcall.sdk import local

        local.only_with_server(method.__qualname__)
        return method(self, *args, **kwargs)

    async def awaited(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(blocking, self, *args, **kwargs)

    made = twin(blocking)
    made.awaited(awaited)
    return made


def _stream_in_thread(method: Callable[Concatenate[S, P], Generator[R, None, None]]) -> stream_twin[S, P, R]:
    """`_in_thread` for a method that yields."""

    @wraps(method)
    def blocking(self: S, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        from farcall.sdk import local

        local.only_with_server(method.__qualname__)
        return method(self, *args, **kwargs)

    async def asynchronous(self: S, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[R, None]:
        items = blocking(self, *args, **kwargs)
        while (item := await asyncio.to_thread(next, items, _END)) is not _END:
            yield item  # pyright: ignore[reportReturnType]

    made = stream_twin(blocking)
    made.asynchronous(asynchronous)
    return made


class _Volumes:
    """`Volume.objects`: the volumes that the server has."""

    _display_name = "Volume.objects"

    @asks
    def create(
        self,
        name: str,
        *,
        version: int | None = None,
        allow_existing: bool = False,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Asking[None]:
        """Makes an empty volume. Where there is one of that name: AlreadyExistsError, or with `allow_existing` nothing
        at all."""
        only_main("Volume.objects.create", environment_name)
        _check_version(version)
        check_name(name)
        yield lambda seq: CreateVolume(seq, name, allow_existing)

    @asks
    def list(
        self,
        *,
        max_objects: int | None = None,
        created_before: datetime | str | None = None,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Asking[Sequence[Volume]]:
        """The volumes, newest first; `max_objects` of them at most, all made before `created_before` (local time where
        it names no zone)."""
        only_main("Volume.objects.list", environment_name)
        if isinstance(created_before, str):
            created_before = datetime.fromisoformat(created_before)
        before = None if created_before is None else created_before.astimezone()
        newest = [
            Volume.from_name(report.name)
            for report in reversed(_reports((yield ListVolumes)))
            if not report.ephemeral and (before is None or _time(report.created_at) < before)
        ]
        return newest[:max_objects]

    @asks
    def delete(
        self, name: str, *, allow_missing: bool = False, environment_name: str | None = None, client: Any = None
    ) -> Asking[None]:
        """Deletes a volume with all its files, for good; containers that have it mounted keep what they see. Where
        there is none of that name: NotFoundError, or with `allow_missing` nothing at all."""
        only_main("Volume.objects.delete", environment_name)
        check_name(name)
        try:
            yield lambda seq: DeleteVolume(seq, name)
        except NotFoundError:
            if not allow_missing:
                raise


class _Renaming:
    """What `Volume.rename` is about: no volume in particular."""

    _display_name = "Volume"

    @asks
    def rename(
        self, old_name: str, new_name: str, *, client: Any = None, environment_name: str | None = None
    ) -> Asking[None]:
        """Gives a volume another name. Raises NotFoundError, AlreadyExistsError."""
        only_main("Volume.rename", environment_name)
        check_name(new_name)
        yield lambda seq: RenameVolume(seq, old_name, new_name)


class EphemeralVolume:
    """What `Volume.ephemeral` returns."""

    def __init__(self) -> None:
        self._name = f"ephemeral-{secrets.token_hex(10)}"

    def __enter__(self) -> Volume:
        self._make()
        return Volume.from_name(self._name)

    def __exit__(self, *_: object) -> None:
        Volume.objects.delete(self._name, allow_missing=True)

    async def __aenter__(self) -> Volume:
        await self._make.aio()
        return Volume.from_name(self._name)

    async def __aexit__(self, *_: object) -> None:
        await Volume.objects.delete.aio(self._name, allow_missing=True)

    @asks
    def _make(self) -> Asking[None]:
        yield lambda seq: CreateVolume(seq, self._name, ephemeral=True)


class Volume:
    """Files under a name, which containers mount: `volumes={"/data": volume}`.

    A container sees the files as they were committed last when it started, and what it writes itself. `commit` shows
    that to others: also every few seconds in the background, and when a container ends, in whatever way but by being
    killed. A commit is seen as a whole or not at all. Of two writers the later one wins, file by file. `reload` brings
    in what others have committed. The other methods are about the newest committed files, in a container, too.
    """

    objects = _Volumes()
    rename = _Renaming().rename

    def __init__(self, spec: VolumeSpec) -> None:
        self._spec = spec
        self._is_there = not spec.create_if_missing

    @property
    def _display_name(self) -> str:
        return f"Volume.from_name({self._spec.name!r})"

    # --- constructors

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
        create_options: Any = None,
        client: Any = None,
    ) -> Volume:
        """The volume of that name; with `create_if_missing` it is made when it is first used.

        An app that mounts a volume which is not there does not start: NotFoundError.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"Volume.from_name takes the name of a volume, not {name!r}")
        check_name(name)
        only_main("Volume.from_name", environment_name)
        _check_version(version)
        return cls(VolumeSpec(name, "", create_if_missing))

    @classmethod
    def from_id(cls, volume_id: str, client: Any = None) -> Volume:
        """Not available yet: use from_name."""
        refuse("Volume.from_id")

    @classmethod
    def ephemeral(
        cls,
        client: Any = None,
        environment_name: str | None = None,
        version: int | None = None,
        create_options: Any = None,
    ) -> EphemeralVolume:
        """An empty volume for the time of a `with` or `async with` block, which gives it.

        It is deleted at the end of the block, or with the program, however that ends, or with the server.
        """
        only_main("Volume.ephemeral", environment_name)
        _check_version(version)
        return EphemeralVolume()

    # --- what it is

    @property
    def name(self) -> str:
        """The name under which it is stored."""
        return self._spec.name

    def read_only(self) -> Volume:
        """The same volume, mounted so that containers cannot write to it."""
        return self.with_mount_options(read_only=True)

    def with_mount_options(
        self, *, read_only: bool | None = None, sub_path: str | PurePosixPath | None = None
    ) -> Volume:
        """The same volume, mounted in another way."""
        if sub_path is not None:
            refuse("Volume.with_mount_options(sub_path=)")
        return Volume(
            msgspec.structs.replace(self._spec, read_only=self._spec.read_only if read_only is None else read_only)
        )

    def mounted_at(self, path: str) -> VolumeSpec:
        """What the server is told of it where it is mounted."""
        return msgspec.structs.replace(self._spec, path=path)

    @asks
    def info(self) -> Asking[VolumeInfo]:
        """Name and id, and when it was made and last changed. Raises NotFoundError."""
        if self._spec.create_if_missing:
            yield lambda seq: CreateVolume(seq, self.name, True)
        for report in _reports((yield ListVolumes)):
            if report.name == self.name:
                times = _time(report.created_at), _time(report.updated_at)
                return VolumeInfo(report.name, report.volume_id, *times)
        raise NotFoundError(f"there is no volume {self.name!r}. Create it with `farcall volume create {self.name}`")

    # --- in a container that has it mounted

    @_in_thread
    def commit(self) -> None:
        """Makes what this container has changed visible to others; it survives a power cut when this returns.

        Where it has changed nothing, nothing happens. Raises VolumeError where the volume is not mounted, or read-only.
        """
        from farcall.sdk import mounted_volumes

        mounted_volumes.find(self.name, "commit").commit()

    @_in_thread
    def reload(self) -> None:
        """Makes what others have committed visible in this container.

        Files that it has changed and not committed stay as they are here. Raises VolumeError, naming the file, where
        one of the volume's files is open here, or the volume is not mounted.
        """
        from farcall.sdk import mounted_volumes

        mounted_volumes.find(self.name, "reload").reload()

    # --- the files that are committed

    @_stream_in_thread
    def iterdir(self, path: str, *, recursive: bool = True) -> Generator[FileEntry, None, None]:
        """What is in a directory, at any depth or, not `recursive`, directly. Paths are relative to the volume. Of a
        file it is that file. Raises FileNotFoundError."""
        yield from self._listed(path, recursive)

    @_in_thread
    def listdir(self, path: str, *, recursive: bool = False) -> list[FileEntry]:
        """`iterdir` as a list, not recursive unless told."""
        return self._listed(path, recursive)

    @_stream_in_thread
    def read_file(self, path: str) -> Generator[bytes, None, None]:
        """What a file holds, in chunks of at most 8 MiB, all of one version. Raises FileNotFoundError."""
        from farcall.sdk.volume_transfer import read

        yield from read(self.name, self._file(path))

    @_in_thread
    def read_file_into_fileobj(
        self, path: str, fileobj: IO[bytes], progress_cb: Callable[..., Any] | None = None
    ) -> int:
        """Writes what a file holds to `fileobj`; returns how many bytes. Raises FileNotFoundError."""
        from farcall.sdk.volume_transfer import read

        entry = self._file(path)
        for chunk in read(self.name, entry):
            fileobj.write(chunk)
        return entry.size

    @_in_thread
    def remove_file(self, path: str, recursive: bool = False) -> None:
        """Removes a file, or a directory with all that is in it, which must be said with `recursive`. Raises
        FileNotFoundError."""
        from farcall.sdk.volume_transfer import Upload

        entries = self._newest()
        place = place_of(path)
        if not place:
            raise InvalidError(f"Volume.remove_file({path!r}): a volume's root cannot be removed")
        if place not in entries:
            raise self._missing(path)
        if stat.S_ISDIR(entries[place].mode) and not recursive:
            raise InvalidError(f"{path} in volume {self.name!r} is a directory: say recursive=True (-r)")
        Upload().commit(self.name, (), [one for one in entries if one == place or one.startswith(place + b"/")])

    @_in_thread
    def copy_files(self, src_paths: Sequence[str], dst_path: str, recursive: bool = False) -> None:
        """Copies files within the volume, as `cp` does: several, or one to where a directory is, go into it; no byte is
        moved. Directories must be said with `recursive`. Raises FileNotFoundError."""
        from farcall.sdk.volume_transfer import Upload

        if isinstance(src_paths, str):
            raise InvalidError(f"Volume.copy_files: {src_paths!r} is no list of paths")
        entries = self._newest()
        target = place_of(dst_path)
        is_directory = not target or (target in entries and stat.S_ISDIR(entries[target].mode))
        if len(src_paths) > 1 and not is_directory:
            raise InvalidError(
                f"{dst_path} in volume {self.name!r} is no directory, and {len(src_paths)} files go there"
            )
        copied: list[VolumeEntry] = []
        for path in src_paths:
            source = place_of(path)
            if source not in entries:
                raise self._missing(path)
            to = (
                posixpath.join(target, posixpath.basename(source)) if is_directory or dst_path.endswith("/") else target
            )
            if stat.S_ISDIR(entries[source].mode) and not recursive:
                raise InvalidError(f"{path} in volume {self.name!r} is a directory: say recursive=True (-r)")
            if to == source or to.startswith(source + b"/"):
                raise InvalidError(f"{path} in volume {self.name!r} cannot be copied into itself")
            inside = [one for one in entries.values() if one.path.startswith(source + b"/")]
            copied += [
                msgspec.structs.replace(one, path=to + one.path[len(source) :]) for one in (entries[source], *inside)
            ]
        Upload().commit(self.name, copied)

    def batch_upload(self, force: bool = False) -> VolumeUpload:
        """Files to be put in together: `with volume.batch_upload() as batch: batch.put_file(...)`, or `async with`.

        They are put in, as one change, at the end of the block, and not at all where it raises. Raises FileExistsError
        where there is a file already, unless told with `force` to replace it.
        """
        return VolumeUpload(self, force)

    def ensure(self) -> None:
        """Makes it where it may be made."""
        from farcall.sdk import client as clients

        if not self._is_there:
            clients.current().request(lambda seq: CreateVolume(seq, self.name, True))
            self._is_there = True

    def _newest(self) -> dict[bytes, VolumeEntry]:
        from farcall.sdk.volume_transfer import newest

        self.ensure()
        return {entry.path: entry for entry in newest(self.name).entries}

    def _listed(self, path: str, recursive: bool) -> list[FileEntry]:
        if path.endswith("*"):
            raise InvalidError(f"{path!r}: patterns are not expanded; list the directory and choose")
        entries = self._newest()
        place = place_of(path)
        if place not in entries:
            raise self._missing(path)
        if not stat.S_ISDIR(entries[place].mode):
            return [_listed(entries[place])]
        prefix = place + b"/" if place else b""
        inside = (one for one in entries.values() if one.path.startswith(prefix) and one.path != place)
        return [_listed(one) for one in inside if recursive or b"/" not in one.path[len(prefix) :]]

    def _file(self, path: str) -> VolumeEntry:
        entries = self._newest()
        place = place_of(path)
        for _ in range(40):  # symlinks within the volume are followed
            entry = entries.get(place)
            if entry is None:
                raise self._missing(path)
            if not stat.S_ISLNK(entry.mode):
                break
            place = posixpath.normpath(posixpath.join(posixpath.dirname(place), entry.target))
        if not stat.S_ISREG(entry.mode):  # pyright: ignore[reportPossiblyUnboundVariable]
            raise InvalidError(f"{path} in volume {self.name!r} is no file")
        return entry  # pyright: ignore[reportPossiblyUnboundVariable]

    def _missing(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"volume {self.name!r} has no {path}; `farcall volume ls {self.name}` shows what it has"
        )

    # --- as an object

    def __reduce__(self) -> tuple[Any, ...]:
        return Volume, (self._spec,)

    def __repr__(self) -> str:
        return f"<farcall.Volume.from_name({self.name!r})>"


def _listed(entry: VolumeEntry) -> FileEntry:
    kind = _KINDS[stat.S_IFMT(entry.mode)]
    return FileEntry(os.fsdecode(entry.path), kind, entry.mtime_ns // 10**9, entry.size)


def _reports(body: bytes) -> list[VolumeReport]:
    return msgspec.msgpack.decode(body, type=list[VolumeReport])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def _check_version(version: int | None) -> None:
    if version not in (None, 1, 2):
        raise InvalidError(f"a volume's version is 1 or 2, not {version!r}; here both are the same")
