"""Trees made ready to be mounted: by a process for each, which is where the launcher is and may do what it may.

An ordinary user's launcher is root of a user namespace, where files of other ids can be made; a worker is not.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from farcall.launcher import syscalls
from farcall.launcher.loop import Loop
from farcall.launcher.messages import Failed, PrepareTree, TreePrepared
from farcall.launcher.namespaces import Place
from farcall.spec.container import MountMode

_FROM = msgspec.msgpack.Decoder(Failed | TreePrepared)
_CHUNK = 65536
_LAZY = b"\xc1"  # before the answer, which cannot begin so: the tree will be lazy


class Trees:
    """All work on trees of one launcher."""

    def __init__(
        self,
        loop: Loop,
        place: Place,
        areas: Path,
        reply: Callable[[Failed | TreePrepared], None],
        on_lazy: Callable[[Path, str], object],
    ) -> None:
        """`areas` is the directory in which containers write; `reply` is called with the answer to each request, long
        before it, for a tree that is lazy, `on_lazy` with its store and its id: a hint, whose OSError is no matter."""
        self._loop = loop
        self._place = place
        self._areas = areas
        self._reply = reply
        self._on_lazy = on_lazy
        self._modes: dict[str, MountMode] = {}  # by store

    def prepare(self, request: PrepareTree) -> int:
        """Begin; the answer comes later. Returns the pid of the process that does it, to be reaped by the caller.

        How trees are mounted is found out by the first process for a store, and then known.
        """
        # Once, here, rather than in each of the processes.
        from farcall.launcher import preparing

        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                kept = [] if self._place.idmap_fd is None else [self._place.idmap_fd]
                syscalls.close_all_but([0, 1, 2, theirs, *kept])
                syscalls.set_process_name("farcall-tree")
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                mode = self._modes.get(request.store)
                answer = preparing.carry_out(request, mode, self._place, self._areas, lambda: os.write(theirs, _LAZY))
                with os.fdopen(theirs, "wb") as stream:
                    stream.write(msgspec.msgpack.encode(answer))
            finally:
                os._exit(1)
        os.close(theirs)
        heard = bytearray()
        self._loop.add(ours, lambda: self._hear(request, ours, heard))
        return pid

    def _hear(self, request: PrepareTree, fd: int, heard: bytearray) -> None:
        data = os.read(fd, _CHUNK)
        if data.startswith(_LAZY) and not heard:
            data = data[len(_LAZY) :]
            with contextlib.suppress(OSError):  # a start says why
                self._on_lazy(Path(request.store), request.tree_id)
            if not data:
                return
        if data:
            heard += data
            return
        self._loop.remove(fd)
        os.close(fd)
        if not heard:
            self._reply(Failed(request.seq, "internal", "the process that made a tree ready ended without a word"))
            return
        answer = _FROM.decode(heard)
        if isinstance(answer, TreePrepared):
            self._modes[request.store] = answer.mode
        self._reply(answer)
