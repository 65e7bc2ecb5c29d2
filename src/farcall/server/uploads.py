"""Content that clients on other machines bring: their source, and what their images copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.content.disk import disk_error, finish_file, write_all
from farcall.content.lease import OBJECT_MODE, Lease
from farcall.content.tree import Tree
from farcall.wire.content import AddContent, ContentPart, OfferTree, ReleaseContent
from farcall.wire.descriptors import close_all
from farcall.wire.memory import from_memory

if TYPE_CHECKING:
    from farcall.content.lease import NewFile
    from farcall.content.store import Store
    from farcall.server.session import Session

Request = OfferTree | AddContent | ReleaseContent


class _Arriving:
    """An object of which some parts are there."""

    def __init__(self, lease: Lease) -> None:
        self.stack = ExitStack()
        self.file: NewFile = self.stack.enter_context(lease.new_file())
        self.hash = hashlib.sha256()
        self.size = 0


class _Peer:
    """What one connection has offered and brought."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.arriving: dict[bytes, _Arriving] = {}

    def close(self) -> None:
        for one in self.arriving.values():
            one.stack.close()
        self.arriving.clear()
        self.lease.close()


class Uploads:
    """What all connections of one server bring. One thread does the work, so that parts stay in order."""

    def __init__(self, store: Store, run: Callable[..., Any]) -> None:
        """`run` is the loop's `run_in_executor`."""
        self._store = store
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self._peers: dict[Session, _Peer] = {}
        self._closed = False

    async def answer(self, session: Session, message: Request, fds: tuple[int, ...]) -> bytes | None:
        """The body of the answer to a request; closes `fds`. Raises what it is refused for."""
        try:
            return await self._run(self._thread, self._answer, session, message, fds)
        finally:
            close_all(fds)
            if not session.is_open:
                self.forget(session)

    def forget(self, session: Session) -> None:
        """A connection is over."""
        if session in self._peers and not self._closed:
            self._thread.submit(self._release, session)

    def close(self) -> None:
        """No more requests come."""
        for session in list(self._peers):
            self.forget(session)
        self._closed = True
        self._thread.shutdown(wait=False)

    # --- in the thread

    def _release(self, session: Session) -> None:
        peer = self._peers.pop(session, None)
        if peer is not None:
            peer.close()

    def _answer(self, session: Session, message: Request, fds: tuple[int, ...]) -> bytes | None:
        if isinstance(message, ReleaseContent):
            self._release(session)
            return None
        peer = self._peers.get(session)
        if peer is None:
            peer = self._peers[session] = _Peer(self._store.lease("upload"))
        if isinstance(message, OfferTree):
            return msgspec.msgpack.encode(_offer(peer, message, fds))
        if sum(part.descriptors for part in message.parts) != len(fds):
            raise errors.ProtocolError("an AddContent whose parts did not come along")
        files = iter(fds)
        for part in message.parts:
            _add(peer, part, from_memory(next(files)) if part.descriptors else part.data)
        return None


def _offer(peer: _Peer, message: OfferTree, fds: tuple[int, ...]) -> list[bytes]:
    if message.descriptors != len(fds):
        raise errors.ProtocolError("an OfferTree whose tree did not come along")
    tree = Tree.decode(from_memory(fds[0]) if fds else message.tree)
    missing = peer.lease.keep_objects({entry.digest: entry.size for entry in tree})
    if not missing:
        peer.lease.add_tree(tree)
    return sorted(missing)


def _add(peer: _Peer, part: ContentPart, data: bytes) -> None:
    lease = peer.lease
    if part.offset == 0 and part.size == len(data):
        if hashlib.sha256(data).digest() != part.digest:
            raise _damaged(part)
        if lease.keep_objects({part.digest: part.size}):
            lease.write_object(part.digest, data, OBJECT_MODE, 0)
        return
    one = peer.arriving.get(part.digest)
    if one is None or part.offset == 0:
        if one is not None:
            one.stack.close()
        one = peer.arriving[part.digest] = _Arriving(lease)
    if part.offset != one.size or one.size + len(data) > part.size or not data:
        raise errors.ProtocolError(f"{len(data):,} bytes at {part.offset:,} are not the next part of their object")
    try:
        write_all(one.file.fd, data)
    except OSError as error:
        raise disk_error(error, "writing", one.file.path) from error
    one.hash.update(data)
    one.size += len(data)
    if one.size < part.size:
        return
    del peer.arriving[part.digest]
    with one.stack:
        if one.hash.digest() != part.digest:
            raise _damaged(part)
        try:
            finish_file(one.file.fd, OBJECT_MODE, 0)
        except OSError as error:
            raise disk_error(error, "writing", one.file.path) from error
        one.file.publish(part.digest, part.size)


def _damaged(part: ContentPart) -> errors.CorruptedError:
    return errors.CorruptedError(f"an object of {part.size:,} bytes arrived as another than {part.digest.hex()}")
