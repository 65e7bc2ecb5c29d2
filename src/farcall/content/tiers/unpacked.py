"""A pack that has arrived, and whose objects are put into the store one by one, as they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from farcall.content.adding import entry_inode
from farcall.content.lease import Lease
from farcall.content.tree import Entry


class Unpacked:
    """Objects in memory that are still to be put into the store. Any number of threads may use it at once."""

    def __init__(self, data: bytes, objects: Mapping[bytes, tuple[int, Entry]]) -> None:
        """`objects` are offsets in `data`, and entries of a tree that name them."""
        self._data = data
        self._left = dict(objects)
        self.size = len(data)
        """Bytes of memory that it takes."""

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._left

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._left))

    def __len__(self) -> int:
        return len(self._left)

    def read(self, digest: bytes, offset: int, size: int) -> bytes | None:
        """Bytes of an object that is left here; None for one that is not."""
        found = self._left.get(digest)
        if found is None:
            return None
        begin, entry = found
        return self._data[begin + offset : begin + min(offset + size, entry.size)]

    def put(self, lease: Lease, digest: bytes) -> bool:
        """Put an object into the store; whether it was left here. Raises what `Lease` raises."""
        found = self._left.get(digest)
        if found is None:
            return False
        offset, entry = found
        if lease.keep_objects({digest: entry.size}):
            lease.write_object(digest, self._data[offset : offset + entry.size], *entry_inode(entry))
        # Not before it is there: who does not find it here looks for it in the store.
        self._left.pop(digest, None)
        return True

    def put_all(self, lease: Lease) -> None:
        """Put all that are left into the store, in the order in which they lie here. Raises what `Lease` raises."""
        for digest in self:
            self.put(lease, digest)
