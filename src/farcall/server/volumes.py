"""Volumes: what programs and containers ask of them. What takes long happens in threads."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from farcall import errors
from farcall.content.disk import disk_error
from farcall.content.lease import Lease
from farcall.content.tree import Entry
from farcall.content.volumes import Changes, Volume, Volumes, is_kept
from farcall.spec.volume import VolumeSpec, check_name
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory
from farcall.wire.volumes import (
    AddedFile,
    AddVolumeFiles,
    CommitVolume,
    CreateVolume,
    DeleteVolume,
    GetVolume,
    ListVolumes,
    MountedVolume,
    ReadVolume,
    RenameVolume,
    VolumeChanges,
    VolumeEntry,
    VolumeReport,
    VolumeVersion,
)

if TYPE_CHECKING:
    from farcall.builder.tidier import Tidier
    from farcall.content.store import Store
    from farcall.server.session import Session
    from farcall.spec.function import FunctionSpec

T = TypeVar("T")

Request = (
    CreateVolume | ListVolumes | DeleteVolume | RenameVolume | GetVolume | ReadVolume | AddVolumeFiles | CommitVolume
)

_THREADS = 4
_SHOWN_VERSIONS = 8  # of all volumes, that a connection may still read from
_encode = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(VolumeChanges).decode


class _Batch(NamedTuple):
    """Files that were added for one commit."""

    lease: Lease
    sizes: dict[bytes, int]

    def close(self, *, committed: bool = False) -> None:
        if not committed:
            self.lease.store.dead.add(sum(self.sizes.values()))
        self.lease.close()


class _Peer:
    """What one connection has been shown, and what it has added and not committed."""

    def __init__(self, started_with: Iterable[MountedVolume]) -> None:
        self.started_with = {(volume.name, volume.version) for volume in started_with}
        self.lock = threading.Lock()  # several of its requests may be worked on at once
        self.shown: OrderedDict[tuple[str, str], tuple[Lease, frozenset[bytes]]] = OrderedDict()
        self.adding: dict[str, _Batch] = {}
        self.ephemeral: list[str] = []  # volumes that end with it

    def close(self) -> None:
        for lease, _ in self.shown.values():
            lease.close()
        for batch in self.adding.values():
            batch.close()


class VolumeRequests:
    """The volumes of one server. All methods but those of its threads belong to the event loop."""

    def __init__(self, store: Store, run: Callable[..., Any], tidier: Tidier) -> None:
        """`run` is the loop's `run_in_executor`."""
        self._store = store
        self._tidier = tidier
        self._volumes = Volumes(store)
        self._run = run
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="volumes")
        self._peers: dict[Session, _Peer] = {}
        self._volumes.delete_ephemeral()  # of programs that a server before this one had

    # --- for the server

    def look_back(self) -> None:
        """Sees to what an earlier server's volumes have left behind."""
        self._tidier.check()

    async def check(self, functions: Iterable[FunctionSpec]) -> None:
        """Makes the volumes that may be made. Raises NotFoundError where a function names one that is not there."""
        for function in functions:
            await self.mounted(function)

    async def mounted(self, function: FunctionSpec) -> tuple[MountedVolume, ...]:
        """The volumes of a container that starts now. Raises as `check` does."""
        return tuple(
            [await self._in_thread(lambda volume=one: self._mounted(function, volume)) for one in function.volumes]
        )

    def _mounted(self, function: FunctionSpec, volume: VolumeSpec) -> MountedVolume:
        check_name(volume.name)
        try:
            if volume.create_if_missing:
                now = self._volumes.create(volume.name, allow_existing=True)
            else:
                now = self._volumes.get(volume.name)
        except errors.NotFoundError as error:
            raise errors.NotFoundError(f"{function.name}: {error}") from None
        written_at = f"/run/farcall/volumes/{volume.name}" if volume.read_only else ""
        return MountedVolume(volume.name, volume.path, now.tree_id, volume.read_only, written_at)

    def forget(self, session: Session) -> None:
        """A connection is over; what it has not committed never was."""
        peer = self._peers.pop(session, None)
        if peer is not None:
            self._threads.submit(self._forget, peer, asyncio.get_running_loop())

    def _forget(self, peer: _Peer, loop: asyncio.AbstractEventLoop) -> None:
        peer.close()
        for name in peer.ephemeral:
            with contextlib.suppress(errors.NotFoundError):
                self._volumes.delete(name)
        with contextlib.suppress(RuntimeError):  # the server has ended; the next one looks when it starts
            loop.call_soon_threadsafe(self._tidier.check)

    def close(self) -> None:
        """No more requests come."""
        for session in list(self._peers):
            self.forget(session)
        self._threads.shutdown(wait=False, cancel_futures=False)

    # --- requests

    async def answer(
        self, session: Session, message: Request, fds: tuple[int, ...], allowed: frozenset[str] | None
    ) -> bytes | None:
        """The body of the answer to a request; closes `fds`. `allowed` are the volumes that a container may use, None
        for a program. Raises what the request is refused for."""
        peer = self._peers.setdefault(session, _Peer(session.mounted))
        try:
            self._check_allowed(message, allowed)
            return await self._with_room(lambda: self._answer(peer, message, fds))
        finally:
            if isinstance(message, CommitVolume) and (batch := peer.adding.pop(message.batch, None)):
                batch.close()
            self._tidier.check()
            close_all(fds)
            if not session.is_open:
                self.forget(session)

    def _check_allowed(self, message: Request, allowed: frozenset[str] | None) -> None:
        if allowed is None or isinstance(message, AddVolumeFiles):
            return
        match message:
            case GetVolume() | ReadVolume() | CommitVolume():
                name = message.name
            case CreateVolume(allow_existing=True):
                name = message.name
            case _:
                raise errors.PermissionDeniedError("code in a container cannot manage volumes, only use their files")
        if name not in allowed:
            raise errors.PermissionDeniedError(
                f"code in a container can use the volumes that its app mounts: name volume {name!r} in volumes= of one "
                "of the app's functions"
            )

    async def _with_room(self, work: Callable[[], T]) -> T:
        """Does it in a thread, and once more where there was no room and old versions, which nobody needs, have it."""
        try:
            return await self._in_thread(work)
        except errors.ResourceExhaustedError:
            await self._tidier.tidy()
            return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._run(self._threads, work)

    def _answer(self, peer: _Peer, message: Request, fds: tuple[int, ...]) -> bytes | None:
        match message:
            case CreateVolume(name=name):
                check_name(name)
                return _encode(_report(self._create(peer, message)))
            case ListVolumes():
                return _encode([_report(volume) for volume in self._volumes.all()])
            case DeleteVolume(name=name):
                check_name(name)
                self._volumes.delete(name)
                return None
            case RenameVolume(name=name, new_name=new_name):
                check_name(name)
                check_name(new_name)
                return _encode(_report(self._volumes.rename(name, new_name)))
            case GetVolume():
                return _encode(self._version(peer, message))
            case ReadVolume():
                return self._read(peer, message)
            case AddVolumeFiles():
                return _encode(self._add(peer, message, fds))
            case CommitVolume():
                return _encode(_report(self._commit(peer, message, fds)))

    def _create(self, peer: _Peer, message: CreateVolume) -> Volume:
        if not message.ephemeral:
            return self._volumes.create(message.name, allow_existing=message.allow_existing)
        made = self._volumes.create(message.name, ephemeral=True)
        peer.ephemeral.append(made.name)
        return made

    def _version(self, peer: _Peer, message: GetVolume) -> VolumeVersion:
        check_name(message.name)
        version = message.version or self._volumes.get(message.name).tree_id
        if version == message.known:
            return VolumeVersion(version)
        key = (message.name, version)
        if message.version and key not in peer.started_with and key not in peer.shown:
            raise errors.PermissionDeniedError(f"that version of volume {message.name!r} was not shown here")
        tree = self._store.tree(version)
        with peer.lock:
            if key not in peer.shown:
                lease = self._store.lease("volume")
                lease.keep_tree(version)
                peer.shown[key] = lease, frozenset(tree.digests())
                while len(peer.shown) > _SHOWN_VERSIONS:
                    peer.shown.popitem(last=False)[1][0].close()
        return VolumeVersion(version, tuple(map(_shown, tree)))

    def _read(self, peer: _Peer, message: ReadVolume) -> bytes:
        with peer.lock:
            shown = [digests for (name, _), (_, digests) in peer.shown.items() if name == message.name]
        if not any(message.digest in digests for digests in shown):
            raise errors.NotFoundError(f"that file of volume {message.name!r} was replaced meanwhile; read it again")
        path = self._store.path_of(message.digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(fd, message.size, message.offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(error, "reading", path) from error

    def _add(self, peer: _Peer, message: AddVolumeFiles, fds: tuple[int, ...]) -> list[AddedFile]:
        if sum(message.descriptors) != len(fds) or len(message.descriptors) != len(message.data):
            raise errors.ProtocolError("an AddVolumeFiles whose files did not come along")
        with peer.lock:
            if message.batch not in peer.adding:
                peer.adding[message.batch] = _Batch(self._store.lease("volume"), {})
            batch = peer.adding[message.batch]
        added: list[AddedFile] = []
        position = 0
        for data, count in zip(message.data, message.descriptors, strict=True):
            if count:
                reader = _Part(fds[position])
                position += 1
            else:
                reader = io.BytesIO(data)
            digest, size = batch.lease.add_stream(reader)
            batch.sizes[digest] = size
            added.append(AddedFile(digest, size))
        return added

    def _commit(self, peer: _Peer, message: CommitVolume, fds: tuple[int, ...]) -> Volume:
        check_name(message.name)
        if message.descriptors != len(fds):
            raise errors.ProtocolError("a CommitVolume whose changes did not come along")
        try:
            changes = _decode_changes(from_memory(fds[0]) if fds else message.changes)
        except msgspec.DecodeError as error:
            raise errors.ProtocolError(f"the changes of a CommitVolume cannot be read: {error}") from None
        if any(not is_kept(entry.mode) for entry in changes.entries):
            raise errors.InvalidError("volumes hold files, directories and symlinks only")
        batch = peer.adding.get(message.batch) or _Batch(self._store.lease("volume"), {})
        peer.adding[message.batch] = batch
        committed = self._volumes.commit(
            message.name,
            Changes(tuple(map(_taken, changes.entries)), frozenset(changes.removed), changes.only_new),
            batch.lease,
            batch.sizes,
        )
        peer.adding.pop(message.batch, batch).close(committed=True)
        return committed


class _Part:
    """A file of somebody else's, as long as it is now: one that grows all the time has an end, too."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise errors.InvalidError("what is put into a volume must be a regular file")
        self._fd = fd
        self._offset = 0
        self._left = status.st_size

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, min(size, self._left), self._offset)
        self._offset += len(data)
        self._left -= len(data)
        return data


def _report(volume: Volume) -> VolumeReport:
    times = volume.created_at, volume.updated_at
    return VolumeReport(volume.volume_id, volume.name, volume.tree_id, *times, volume.is_ephemeral)


def _shown(entry: Entry) -> VolumeEntry:
    return VolumeEntry(
        entry.path, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.digest, entry.target
    )


def _taken(entry: VolumeEntry) -> Entry:
    return Entry(entry.path, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.digest, entry.target)
