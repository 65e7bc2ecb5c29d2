"""The file system's server: answers the kernel, which asks when a container opens what the store does not have."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Coroutine
from contextlib import suppress

from farcall.content.disk import disk_error
from farcall.content.store import Store
from farcall.errors import FarcallError
from farcall.mounts.lazy import fuse, index
from farcall.mounts.lazy.arrivals import WHOLE_BYTES, Arrivals
from farcall.mounts.lazy.index import Index, Wanted
from farcall.mounts.lazy.openings import Openings
from farcall.mounts.lazy.outages import errno_for
from farcall.mounts.lazy.parts import pieces
from farcall.mounts.lazy.recording import Recordings

_FOLDER_MODE = stat.S_IFDIR | 0o555
_FILE_MODE = stat.S_IFREG | 0o444
_AT_A_TIME = 64  # requests that are taken before others have a turn
_KILLED_POLL = 0.1  # seconds between two looks whether who waits is being killed
_SIGKILL_BIT = 1 << 8


class Server:
    """Serves one mount until it is unmounted. All methods belong to one event loop."""

    def __init__(
        self, device: fuse.Device, store: Store, arrivals: Arrivals, openings: Openings, recordings: Recordings
    ) -> None:
        self._device = device
        self._store = store
        self._arrivals = arrivals
        self._openings = openings
        self._recordings = recordings
        self._index = Index(store)
        self._files: dict[int, int] = {}  # objects that are read through us, open, by node
        self._waiting: dict[int, asyncio.Task[None]] = {}  # by the request's number
        self._dying: set[asyncio.Task[None]] = set()
        self._ended = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Until the file system is mounted nowhere any more. Requests that another server has left come again."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._device.fd, self._readable)
        try:
            with suppress(OSError):  # nothing is mounted yet, or the kernel is older
                self._device.ask_again()
            await self._ended
        finally:
            loop.remove_reader(self._device.fd)

    def begin_start(self, tree_id: str) -> None:
        """A container is about to start from this tree: what earlier starts have opened is fetched ahead."""
        self._arrivals.begin_start(tree_id)
        self._index.add(tree_id)
        self._recordings.begin(tree_id)

    def _readable(self) -> None:
        for _ in range(_AT_A_TIME):
            try:
                request = self._device.next_request()
            except OSError as error:
                if not self._ended.done():
                    if error.errno == errno.ENODEV:
                        self._ended.set_result(None)
                    else:
                        self._ended.set_exception(error)
                return
            if request is None:
                return
            try:
                self._take(request)
            except (FarcallError, OSError) as error:
                self._device.refuse(request, errno_for(error))

    def _take(self, request: fuse.Request) -> None:
        device = self._device
        match request.operation:
            case fuse.INIT:
                device.answer(request, fuse.init_answer(request))
            case fuse.LOOKUP:
                device.answer(request, self._look_up(request))
            case fuse.GETATTR if index.is_folder(request.node):
                device.answer(request, fuse.attributes(request.node, _FOLDER_MODE))
            case fuse.GETATTR:
                device.answer(request, fuse.attributes(request.node, _FILE_MODE, self._at(request).size))
            case fuse.OPENDIR:
                device.answer(request, fuse.opened(0, fuse.CACHE_DIR))
            case fuse.READDIR | fuse.RELEASEDIR:  # nothing is listed: who looks here has a name
                device.answer(request)
            case fuse.STATFS:
                device.answer(request, fuse.statistics())
            case fuse.OPEN:
                self._open(request)
            case fuse.READ:
                self._read(request)
            case fuse.RELEASE:
                self._release(request)
            case fuse.INTERRUPT:
                self._interrupt(request)
            case fuse.FORGET | fuse.BATCH_FORGET:
                pass  # numbers need no memory; and these have no answer
            case fuse.DESTROY:
                device.answer(request)
            case _:
                device.refuse(request, errno.ENOSYS)

    def _look_up(self, request: fuse.Request) -> bytes:
        if request.node == fuse.ROOT:
            node = index.folder_node(request.name)
            if node is not None:
                return fuse.entry(node, _FOLDER_MODE)
        else:
            digest = index.digest_in(request.node, request.name)
            wanted = self._index.find(digest) if digest else None
            if wanted is not None:
                return fuse.entry(index.node_of(wanted.digest), _FILE_MODE, wanted.size)
        raise FileNotFoundError(errno.ENOENT, "no such object")

    def _at(self, request: fuse.Request) -> Wanted:
        wanted = self._index.at(request.node)
        if wanted is None:
            raise OSError(errno.EIO, "an object of no tree")
        return wanted

    # --- opening

    def _open(self, request: fuse.Request) -> None:
        wanted = self._at(request)
        if wanted.size <= WHOLE_BYTES:
            self._recordings.opened(wanted.digest)
        self._arrivals.asked()
        if self._file(wanted) is not None:
            self._opened(request, wanted)
        elif wanted.size > WHOLE_BYTES:
            self._arrivals.open(wanted)
            self._opened(request, wanted)
        elif self._arrivals.put(wanted):
            self._opened(request, wanted)
        else:
            self._wait(request, self._open_when_here(request, wanted))

    async def _open_when_here(self, request: fuse.Request, wanted: Wanted) -> None:
        await self._arrivals.bring(wanted)
        self._opened(request, wanted)

    def _opened(self, request: fuse.Request, wanted: Wanted) -> None:
        """Answers that it is open: to be read past us, if it is here and nobody reads it through us."""
        node = request.node
        known = self._openings.get(node)
        backing = known.backing if known else self._pass_through(node, wanted)
        self._openings.opened(node, backing)
        if backing:
            answer = fuse.opened(0, fuse.PASSTHROUGH | fuse.NO_FLUSH, backing)
        else:
            answer = fuse.opened(0, fuse.KEEP_CACHE | fuse.NO_FLUSH)
        if not self._device.answer(request, answer):
            self._forget_opening(node)

    def _pass_through(self, node: int, wanted: Wanted) -> int:
        file = self._file(wanted)
        if file is None:
            return 0
        try:
            backing = self._device.pass_through(file)
        except OSError:
            return 0
        os.close(self._files.pop(node))
        return backing

    def _release(self, request: fuse.Request) -> None:
        self._forget_opening(request.node)
        self._device.answer(request)

    def _forget_opening(self, node: int) -> None:
        backing = self._openings.released(node)
        if backing:
            with suppress(OSError):
                self._device.end_passing(backing)
        if self._openings.get(node) is None:
            if node in self._files:
                os.close(self._files.pop(node))
            if (wanted := self._index.at(node)) is not None:
                self._arrivals.forget(wanted)

    def _file(self, wanted: Wanted) -> int | None:
        """The object's file, open; None where it is not in the store (yet)."""
        node = index.node_of(wanted.digest)
        file = self._files.get(node)
        if file is None:
            try:
                file = self._files[node] = os.open(self._store.object_path(wanted.digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except OSError as error:
                failure = disk_error(error, "opening", self._store.object_path(wanted.digest))
                failure.__cause__ = error  # of which the log tells
                self._arrivals.cannot_open(wanted, failure)
                raise failure from error
        return file

    # --- reading

    def _read(self, request: fuse.Request) -> None:
        wanted = self._at(request)
        self._arrivals.asked()
        offset, size = request.read_range
        size = min(size, wanted.size - offset)
        if size <= 0:
            self._device.answer(request)
            return
        if wanted.size > WHOLE_BYTES:
            for piece in pieces(offset, size):
                self._recordings.opened(wanted.digest, piece)
        file = self._file(wanted)
        if file is not None:
            self._device.answer(request, os.pread(file, size, offset))
        elif (data := self._arrivals.at_hand(wanted, offset, size)) is not None:
            self._device.answer(request, data)
        else:
            self._wait(request, self._read_when_here(request, wanted, offset, size))

    async def _read_when_here(self, request: fuse.Request, wanted: Wanted, offset: int, size: int) -> None:
        self._device.answer(request, await self._arrivals.read(wanted, offset, size))

    # --- waiting

    def _wait(self, request: fuse.Request, work: Coroutine[object, object, None]) -> None:
        """Does what takes long; whatever fails becomes an errno."""

        async def answered() -> None:
            try:
                await work
            except asyncio.CancelledError:
                self._device.refuse(request, errno.EINTR)
            except (FarcallError, OSError) as error:
                self._device.refuse(request, errno_for(error))
            except Exception:
                self._device.refuse(request, errno.EIO)
                raise
            finally:
                del self._waiting[request.number]

        self._waiting[request.number] = asyncio.ensure_future(answered())

    def _interrupt(self, request: fuse.Request) -> None:
        """A signal has come to who waits. Files do not say EINTR, so only who is being killed waits no more; the kernel
        says it once, whatever comes after."""
        task = self._waiting.get(request.interrupted)
        if task is not None:
            watcher = asyncio.ensure_future(_cancel_when_killed(task, request.pid))
            self._dying.add(watcher)
            watcher.add_done_callback(self._dying.discard)


async def _cancel_when_killed(task: asyncio.Task[None], thread: int) -> None:
    while not task.done():
        if _is_being_killed(thread):
            task.cancel()
            return
        await asyncio.sleep(_KILLED_POLL)


def _is_being_killed(thread: int) -> bool:
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            for line in file:
                name, _, value = line.partition(b":")
                if name in (b"SigPnd", b"ShdPnd") and int(value, 16) & _SIGKILL_BIT:
                    return True
    except OSError:
        return True
    return False
