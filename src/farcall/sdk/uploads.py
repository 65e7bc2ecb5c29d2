"""Bringing local content to a server on another machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from farcall.wire.content import MESSAGE_BYTES, PART_BYTES, AddContent, ContentPart, OfferTree, ReleaseContent
from farcall.wire.descriptors import close_all
from farcall.wire.memory import INLINE_LIMIT, to_memory

if TYPE_CHECKING:
    from farcall.content import Store, Tree
    from farcall.sdk.client import Client, Request

_AHEAD = 4  # messages on their way; a part is at most `PART_BYTES`
_FILES = 32  # memory files of one message


class _Part(NamedTuple):
    digest: bytes
    size: int
    offset: int
    data: bytes


class Uploads:
    """The trees that one server has been brought.

    What a server has is known only from what it says: two programs may be at it at once, and it may collect its
    content at any time. It keeps what it was brought until `release`.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._brought: set[str] = set()

    def bring(self, store: Store, tree_ids: Iterable[str]) -> None:
        """Returns when the server has the trees of `store`. Only what it does not have is sent.

        Raises ConnectionLostError, and what the server cannot store.
        """
        trees = [store.tree(tree_id) for tree_id in dict.fromkeys(tree_ids) if tree_id not in self._brought]
        offers = [self._offer(tree) for tree in trees]
        missing = [frozenset(msgspec.msgpack.decode(offer.wait()[0].body, type=list[bytes])) for offer in offers]
        wanted: dict[bytes, int] = {}
        for tree, digests in zip(trees, missing, strict=True):
            wanted.update((entry.digest, entry.size) for entry in tree if entry.digest in digests)
        self._send(store, wanted)
        again = [self._offer(tree) for tree, digests in zip(trees, missing, strict=True) if digests]
        for offer in again:
            offer.wait()
        self._brought.update(tree.id for tree in trees)

    def release(self) -> None:
        """The server has made the trees its own, or need not."""
        if self._brought:
            self._brought.clear()
            self.client.request(ReleaseContent)

    def _offer(self, tree: Tree) -> Request:
        if len(tree.encoded) <= INLINE_LIMIT:
            return self.client.start(lambda seq: OfferTree(seq, tree.encoded))
        fds = (to_memory(tree.encoded),)
        try:
            return self.client.start(lambda seq: OfferTree(seq, b"", 1), fds)
        finally:
            close_all(fds)

    def _send(self, store: Store, wanted: dict[bytes, int]) -> None:
        under_way: list[Request] = []
        for make, fds in _messages(_parts(store, wanted)):
            try:
                under_way.append(self.client.start(make, fds))
            finally:
                close_all(fds)
            if len(under_way) > _AHEAD:
                under_way.pop(0).wait()
        for request in under_way:
            request.wait()


def _parts(store: Store, wanted: dict[bytes, int]) -> Iterator[_Part]:
    for digest, size in wanted.items():
        with open(store.path_of(digest), "rb") as file:
            offset = 0
            while offset < size:
                data = file.read(min(PART_BYTES, size - offset))
                yield _Part(digest, size, offset, data)
                offset += len(data)


def _messages(parts: Iterator[_Part]) -> Iterator[tuple[Callable[[int], Any], tuple[int, ...]]]:
    """The parts as messages, several small ones in each, with the descriptors that go along."""
    group: list[ContentPart] = []
    fds: list[int] = []
    length = 0
    try:
        for part in parts:
            large = len(part.data) > INLINE_LIMIT
            if group and (length + (0 if large else len(part.data)) > MESSAGE_BYTES or len(fds) >= _FILES):
                yield partial(AddContent, parts=group), tuple(fds)
                group, fds, length = [], [], 0
            if large:
                fds.append(to_memory(part.data))
                group.append(ContentPart(part.digest, part.size, part.offset, b"", 1))
            else:
                length += len(part.data) + 64
                group.append(ContentPart(part.digest, part.size, part.offset, part.data))
        if group:
            yield partial(AddContent, parts=group), tuple(fds)
            fds = []
    finally:
        close_all(fds)
