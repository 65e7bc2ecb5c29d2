"""Content that workers lack: the trees of their containers, from the server's store, in the form of a tier."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from farcall import errors
from farcall.cluster.sharers import Sharers
from farcall.content.attempts import TransientError
from farcall.content.tiers import WritableTier, layout
from farcall.content.tiers.layout import Index
from farcall.content.tiers.passing import Passing
from farcall.content.tiers.store import StoreTier
from farcall.mounts.lazy.sources import open_fetcher, open_tiers
from farcall.wire import cluster, messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import INLINE_LIMIT, to_memory

if TYPE_CHECKING:
    from farcall.cluster.ends import LocalEnd
    from farcall.cluster.machine import Machine
    from farcall.content.lease import Lease
    from farcall.content.store import Store

_THREADS = 12  # some of which may wait for another place
_KNOWN_TREES = 512  # of which it is at hand what belongs to them
_AT_ONCE = 8  # of one worker's requests: the others' turn comes meanwhile
_UNSENT = 64 << 20  # bytes of answers that a worker has not taken, above which no further blob is read for it
MOST_ASKED = 4096  # requests of one worker without an answer; a worker has some dozens
_LONGEST_NAME = 256  # of a blob; they are hashes


class _Asked:
    """What one worker has asked for and not been answered."""

    def __init__(self) -> None:
        self.waiting: deque[cluster.ReadContent] = deque()
        self.read = 0  # that are being read


class Contents:
    """What all workers may read: the trees that their own containers need, or have needed, and nothing else. A worker
    that knows a hash gets no file for that.

    Of an image that was found elsewhere, and has not arrived here, what is asked for is fetched and passed on.
    """

    def __init__(self, store: Store) -> None:
        self.sharers = Sharers()
        self._store = store
        self._tier = StoreTier(store)
        self._passing = Passing(self._tier)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="contents")
        self._needs: dict[Machine, dict[str, tuple[list[str], Lease]]] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._lock = Lock()  # of the threads, for the names
        self._asked: dict[Machine, _Asked] = {}

    def allow(self, machine: Machine, container_id: str, trees: Iterable[str], root: str = "") -> None:
        """A container that is to be made there needs these trees, and this one of an image. They are kept until it is
        gone. Raises NotFoundError for one that is not here."""
        lease = self._store.lease("worker")
        needed = [*trees, *([root] if root else [])]
        self._needs.setdefault(machine, {})[container_id] = needed, lease
        for tree_id in needed:
            lease.keep_tree(tree_id)
            self.sharers.join(machine, tree_id, in_stores=tree_id == root)

    def forbid(self, machine: Machine, container_id: str) -> None:
        """A container is gone."""
        needs = self._needs.get(machine, {})
        found = needs.pop(container_id, None)
        if not needs:
            self._needs.pop(machine, None)
        if found is not None:
            found[1].close()

    def leave(self, machine: Machine) -> None:
        """A worker is gone."""
        self.sharers.leave(machine)
        self._asked.pop(machine, None)

    def close(self) -> None:
        """Nobody asks any more."""
        self._asked.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for needs in self._needs.values():
            for _, lease in needs.values():
                lease.close()
        self._needs.clear()

    def answer(self, machine: Machine, peer: LocalEnd, message: Any, fds: tuple[int, ...]) -> None:
        """Answers what a worker asks, by and by: as far as it takes the answers. Raises ProtocolError for what no
        worker asks."""
        close_all(fds)
        if not isinstance(message, cluster.ReadContent):
            raise errors.ProtocolError(f"a {type(message).__name__} has no place here")
        if len(message.name) > _LONGEST_NAME:
            raise errors.ProtocolError(f"a blob's name has {len(message.name):,} characters")
        asked = self._asked.setdefault(machine, _Asked())
        if len(asked.waiting) >= MOST_ASKED:
            machine.misbehaves(f"it asks for content and does not wait: {MOST_ASKED:,} requests have no answer")
            return
        asked.waiting.append(message)
        self.go_on(machine, peer)

    def go_on(self, machine: Machine, peer: LocalEnd) -> None:
        """Answers what a worker has asked, as far as it has taken earlier answers: blobs in memory are few."""
        asked = self._asked.get(machine)
        while asked is not None and asked.waiting and asked.read < _AT_ONCE and peer.held < _UNSENT:
            asked.read += 1
            self._answer(machine, asked, peer, asked.waiting.popleft())

    def _answer(self, machine: Machine, asked: _Asked, peer: LocalEnd, message: cluster.ReadContent) -> None:
        allowed = self._allowed(machine)
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._read, message.name, allowed)

        def done(future: asyncio.Future[bytes]) -> None:
            if future.cancelled():
                return  # the server ends
            asked.read -= 1
            send(future)
            self.go_on(machine, peer)

        def send(future: asyncio.Future[bytes]) -> None:
            error = future.exception()
            if error is None:
                body = future.result()
                long = len(body) > INLINE_LIMIT
                try:
                    fds = (to_memory(body),) if long else ()
                except OSError as failure:  # who asked waits for an answer for as long as its lease holds
                    error = errors.ResourceExhaustedError(f"{message.name} could not be sent: {failure.strerror}")
                else:
                    peer.send(messages.Done(message.seq, b"" if long else body, int(long)), fds)
                    return
            if not isinstance(error, errors.FarcallError):
                error = errors.InternalError(f"{message.name} could not be read: {error!r}")
            peer.send(messages.Failed(message.seq, messages.Failure(error.code, str(error))))

        work.add_done_callback(done)

    def _allowed(self, machine: Machine) -> list[str]:
        """The trees that it may have, what its containers need the last: that stays, however many others came since."""
        needed = (one for trees, _ in self._needs.get(machine, {}).values() for one in trees)
        return list(dict.fromkeys([*self.sharers.trees(machine), *needed]))

    def _read(self, name: str, allowed: Sequence[str]) -> bytes:
        self._passing.forget()
        kind, _, rest = name.partition("/")
        if kind in ("trees", "indexes") and rest in allowed:
            if kind == "indexes":
                self._index(rest)
            return self._tier.get(name)
        # Who asks for a part of a tree has its index, from here as a rule. To make one may mean to read all of a tree.
        for index in (self._stored_index, self._made_index):
            if any(self._is_of(name, tree_id, index) for tree_id in reversed(allowed)):
                break
        else:
            raise errors.PermissionDeniedError(f"no container of this worker needs {name}")
        try:
            return self._passing.get(name, self._further)
        except TransientError as error:
            raise errors.ConnectionError(f"{error.what}. {error.advice}") from error

    @cached_property
    def _further(self) -> Sequence[WritableTier]:
        return open_tiers(self._store)

    def _is_of(self, name: str, tree_id: str, index: Callable[[str], Index | None]) -> bool:
        """Whether a tree's content lies in that blob, among others, as its index says."""
        names = self._names.get(tree_id)
        if names is None:
            found = index(tree_id)
            if found is None:
                return False
            names = frozenset(found.names())
            with self._lock:
                self._names[tree_id] = names
                while len(self._names) > _KNOWN_TREES:
                    del self._names[next(iter(self._names))]
        return name in names

    def _stored_index(self, tree_id: str) -> Index | None:
        return layout.stored_index(self._store, tree_id)

    def _made_index(self, tree_id: str) -> Index | None:
        try:
            return self._index(tree_id)
        except errors.NotFoundError:
            return None  # the tree is not here any more

    def _index(self, tree_id: str) -> Index:
        try:
            return self._tier.index(tree_id)
        except errors.NotFoundError:
            if not self._store.partial_path(tree_id).exists():
                raise
        # It could be made only from all that the tree names.
        fetcher = open_fetcher(self._store, self._further)
        try:
            fetcher.tree(tree_id)  # which looks for its index, too, and keeps that
        finally:
            fetcher.close()
        return self._tier.index(tree_id)
