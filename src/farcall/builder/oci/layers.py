"""An image's layers, put one upon the other."""

import hashlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

from farcall.content import Lease
from farcall.content.compression import Decompressed
from farcall.content.layers import read_layer
from farcall.content.lease import Readable
from farcall.content.readahead import CHUNK_BYTES
from farcall.errors import ContentError, CorruptedError, InvalidError, NotFoundError

_KIND = "layers"  # records of the trees that images' lower layers make, by chain id


class LayerStack:
    """An image's file system while it is put together. The lease keeps what is there.

    What stacks of layers make is recorded, so that an image which begins with the same layers as an earlier one begins
    with its tree; also where unpacking was cut short.
    """

    def __init__(self, lease: Lease, diff_ids: Sequence[str], name: str) -> None:
        """Begins with what is there already. `diff_ids` are the digests of the layers as they are uncompressed."""
        self.lease = lease
        self._diff_ids = diff_ids
        self._chain = chain_ids(diff_ids)
        self._name = name
        self.tree_id, self.height = self._begin()
        self._tree = lease.store.tree(self.tree_id)

    def _begin(self) -> tuple[str, int]:
        for height in range(len(self._chain), 0, -1):
            record = self.lease.store.record(_KIND, self._chain[height - 1])
            if record is not None:
                try:
                    self.lease.keep_tree(record.trees[0])
                    return record.trees[0], height
                except NotFoundError:
                    continue  # collected just now
        return self.lease.add_tree(()), 0

    def add(self, layer: Readable) -> None:
        """Unpack the next layer. Raises what `read_layer` does, and CorruptedError for one that is not the image's."""
        which = f"{self._name}, layer {self.height + 1} of {len(self._diff_ids)}"
        promised = self._diff_ids[self.height]
        try:
            stream = _Hashed(Decompressed(layer), promised.partition(":")[0])
            self._tree = self._tree.merge(read_layer(self.lease, stream, self._tree))
            found = stream.finish()
        except (ContentError, InvalidError) as error:
            raise type(error)(f"{which}: {error}") from error
        if found != promised:
            raise CorruptedError(
                f"{which}: unpacked it is {found}, not {promised}. The image is damaged: build or push it again"
            )
        self.tree_id = self.lease.add_tree(self._tree)
        self.lease.store.put_record(_KIND, self._chain[self.height], trees=[self.tree_id])
        self.height += 1

    def add_all(self, open_layer: Callable[[int], BinaryIO]) -> None:
        """Unpack all layers that are missing, each opened by its place."""
        while self.height < len(self._diff_ids):
            with open_layer(self.height) as layer:
                self.add(layer)


class _Hashed:
    """A stream, hashed while it is read."""

    def __init__(self, stream: Readable, algorithm: str) -> None:
        self._stream = stream
        self._hasher = hashlib.new(algorithm)

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._hasher.update(data)
        return data

    def finish(self) -> str:
        """Reads what is left, and returns the digest of it all."""
        while self.read(CHUNK_BYTES):
            pass
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """What each layer makes with those below it, by a hash of their digests (hex).

    https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        # The lowest's is its own digest.
        text = f"sha256:{chain[-1]} {diff_id}" if chain else diff_id
        chain.append(hashlib.sha256(text.encode()).hexdigest() if chain else diff_id.partition(":")[2])
    return chain
