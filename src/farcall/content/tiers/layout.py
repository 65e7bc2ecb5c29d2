"""Which blobs a tree consists of.

    trees/<id>              the encoded tree
    indexes/<tree id>       which packs and pieces have its objects
    packs/ab/<62 hex>       small objects, end to end; its name is the SHA-256 of their digests
    pieces/ab/<62 hex>      a part of a large object; its name is the SHA-256 of its bytes
    records/<kind>/<key>    what a machine that has never seen an image finds it by: a step of a build, an image

A start reads thousands of small files. One by one they would wait for as many round trips; so what lies side by side
in a tree is in one pack, and comes with one: bytecode beside bytecode and libraries beside libraries, since who opens
one of a folder opens more of that kind, and not what lies between. Large files are in pieces so that their first page
need not wait for the last, and so that what has arrived can be checked before the rest has.
"""

import hashlib
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from farcall.content.compression import compress, decompress
from farcall.content.disk import disk_error, write_file
from farcall.content.records import Record
from farcall.content.store import Store
from farcall.content.tiers.tier import MAX_BLOB_BYTES
from farcall.content.tree import DIGEST_BYTES, Tree
from farcall.errors import CorruptedError, NotFoundError

FORMAT = 1  # of all that is in a tier
BLOB_BYTES = 4 << 20  # of a piece, and of the objects of a pack together
_RAW, _ZSTD = b"\0", b"\1"
_WORTH = 0.9  # a blob is kept compressed where that makes it smaller than this part
_USEFUL = 0.5  # a pack that is there already is used again where at least this part of its bytes is wanted


class Pack(msgspec.Struct, array_like=True, frozen=True):
    """Objects end to end: their digests, each of 32 bytes, and their sizes."""

    digests: bytes
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        return _spread("packs", hashlib.sha256(self.digests).hexdigest())

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def objects(self) -> Iterator[tuple[bytes, int, int]]:
        """Digest, offset and size of each."""
        offset = 0
        for place, size in enumerate(self.sizes):
            yield self.digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES], offset, size
            offset += size


class Large(msgspec.Struct, array_like=True, frozen=True):
    """An object in pieces of `BLOB_BYTES`, the last of which may be shorter: the SHA-256 of each, end to end."""

    digest: bytes
    size: int
    pieces: bytes

    def __len__(self) -> int:
        return -(-self.size // BLOB_BYTES)

    def piece(self, number: int) -> "Piece":
        """The piece that begins at `number * BLOB_BYTES`."""
        offset = number * BLOB_BYTES
        digest = self.pieces[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        return Piece(digest, offset, min(BLOB_BYTES, self.size - offset))


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A part of an object: the SHA-256 of its bytes, and where it is."""

    digest: bytes
    offset: int
    size: int

    @property
    def name(self) -> str:
        return _spread("pieces", self.digest.hex())


class Index(msgspec.Struct, array_like=True, frozen=True):
    """Where the objects of a tree are. Packs may have objects of other trees, too."""

    packs: tuple[Pack, ...] = ()
    large: tuple[Large, ...] = ()

    def names(self) -> Iterator[str]:
        """The blobs that it is about."""
        yield from (pack.name for pack in self.packs)
        yield from (large.piece(number).name for large in self.large for number in range(len(large)))


@dataclass
class Located:
    """An `Index` to look into: each object of a tree is in a pack, or is a large one."""

    packs: dict[bytes, Pack]
    large: dict[bytes, Large]


def tree_name(tree_id: str) -> str:
    """The blob that an encoded tree is."""
    return f"trees/{tree_id}"


def index_name(tree_id: str) -> str:
    """The blob that a tree's index is."""
    return f"indexes/{tree_id}"


def record_name(kind: str, key: str) -> str:
    """The blob that a record is."""
    return f"records/{kind}/{key}"


def make_index(store: Store, tree: Tree, known: Iterable[Index] = ()) -> Index:
    """An index of a tree whose objects are in the store; `known` are indexes whose packs and pieces it may share.

    Reads large objects that none of them has. Raises `NotFoundError` for one that is not there, and what `disk_error`
    says.
    """
    entries = sorted((entry for entry in tree if entry.digest), key=lambda entry: _kind(entry.path))
    sizes = {entry.digest: entry.size for entry in entries}
    packs: list[Pack] = []
    known_large: dict[bytes, Large] = {}
    wanted = {digest for digest, size in sizes.items() if size <= BLOB_BYTES}
    for index in known:
        known_large.update((large.digest, large) for large in index.large)
        for pack in index.packs:
            inside = [(digest, size) for digest, _, size in pack.objects() if digest in wanted]
            if inside and sum(size for _, size in inside) >= _USEFUL * pack.size:
                packs.append(pack)
                wanted.difference_update(digest for digest, _ in inside)
    large = [
        known_large.get(digest) or _cut(store, digest, size) for digest, size in sizes.items() if size > BLOB_BYTES
    ]
    packs += pack_up({digest: size for digest, size in sizes.items() if digest in wanted}, BLOB_BYTES)
    return Index(tuple(packs), tuple(large))


def pack_up(sizes: Mapping[bytes, int], most: int) -> Iterator[Pack]:
    """Packs of these objects, in this order: of at most so many bytes, unless a single object has more."""
    filling: list[bytes] = []
    filled = 0
    for digest, size in sizes.items():
        if filling and filled + size > most:
            yield _packed(filling, sizes)
            filling, filled = [], 0
        filling.append(digest)
        filled += size
    if filling:
        yield _packed(filling, sizes)


def pack_bytes(store: Store, pack: Pack) -> bytes:
    """What a pack has in it, read from the store, and believed. Raises `NotFoundError` and what `disk_error` says."""
    return b"".join(read_part(store, digest, 0, size) for digest, _, size in pack.objects())


def read_part(store: Store, digest: bytes, offset: int, size: int) -> bytes:
    """A part of an object in the store. Raises `NotFoundError`, `CorruptedError` for one that is too short, and what
    `disk_error` says."""
    path = store.object_path(digest)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise NotFoundError(f"the content store {store.root} has no object {digest.hex()}") from None
    except OSError as error:
        raise disk_error(error, "reading", path) from error
    if len(data) != size:
        raise CorruptedError(f"object {digest.hex()} is damaged: it ends at {offset + len(data):,}")
    return data


def stored_index(store: Store, tree_id: str) -> Index | None:
    """The index of a tree that the store has, None where it has none, or a damaged one. Raises what `disk_error`
    says."""
    path = store.root / "indexes" / tree_id
    try:
        return decode_index(path.read_bytes(), str(path))
    except (FileNotFoundError, CorruptedError):
        return None
    except OSError as error:
        raise disk_error(error, "reading", path) from error


def indexed_trees(store: Store) -> list[str]:
    """The trees whose indexes the store has."""
    try:
        return os.listdir(store.root / "indexes")
    except FileNotFoundError:
        return []


def store_index(store: Store, tree_id: str, index: Index) -> None:
    """Keep a tree's index in the store, for as long as the tree may be there. Raises what `disk_error` says."""
    path = store.root / "indexes" / tree_id
    made = store.root / "incoming" / f"index-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)  # which stores of earlier versions do not have
        with store.steady():  # a collection would take it for what somebody left who was killed
            write_file(str(made), encode_index(index), 0o444)
            os.rename(made, path)
    except OSError as error:
        raise disk_error(error, "writing", path) from error


def forget_index(store: Store, tree_id: str) -> None:
    """Do not keep a tree's index, which was found to be wrong. Raises what `disk_error` says."""
    path = store.root / "indexes" / tree_id
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, "removing", path) from error


def encode_index(index: Index) -> bytes:
    """An index as it is kept; `decode_index` is the inverse."""
    return _sealed(msgspec.msgpack.encode(index))


def decode_index(encoded: bytes, title: str) -> Index:
    """Raises `CorruptedError`, which says `title`, for what is no index."""
    try:
        index = msgspec.msgpack.decode(_unsealed(encoded, title), type=Index)
    except msgspec.DecodeError as error:
        raise CorruptedError(f"{title} cannot be read: {error}") from None
    for pack in index.packs:
        check_pack(pack, title)
    for large in index.large:
        if large.size <= BLOB_BYTES or len(large.pieces) != len(large) * DIGEST_BYTES:
            raise CorruptedError(f"{title} has an object of {large.size:,} bytes whose pieces do not match")
    return index


def check_pack(pack: Pack, title: str) -> None:
    """Raises `CorruptedError`, which says `title`, for what is no pack."""
    if len(pack.digests) != len(pack.sizes) * DIGEST_BYTES or any(size <= 0 for size in pack.sizes):
        raise CorruptedError(f"{title} has a pack whose digests and sizes do not match")
    if pack.size > BLOB_BYTES:
        raise CorruptedError(f"{title} has a pack of {pack.size:,} bytes, more than {BLOB_BYTES:,}")


def open_index(tree_id: str, blob: bytes) -> Index:
    """The index of a tree from the blob that it is in a tier. Raises `CorruptedError`."""
    title = f"the index of tree {tree_id}"
    return decode_index(decode_blob(blob, MAX_BLOB_BYTES, title), title)


def open_pack(pack: Pack, wanted: Collection[bytes], blob: bytes) -> bytes:
    """The objects of a pack, end to end, from its blob; those that are wanted are checked. Raises `CorruptedError`."""
    data = decode_blob(blob, pack.size, pack.name)
    for digest, offset, size in pack.objects():
        if digest in wanted and hashlib.sha256(memoryview(data)[offset : offset + size]).digest() != digest:
            raise CorruptedError(f"{pack.name} has other bytes than object {digest.hex()} where that should be")
    return data


def open_piece(large: Large, piece: Piece, blob: bytes) -> bytes:
    """A piece of a large object from its blob. Raises `CorruptedError`."""
    data = decode_blob(blob, piece.size, piece.name)
    if len(data) != piece.size or hashlib.sha256(data).digest() != piece.digest:
        raise CorruptedError(f"{piece.name} has other bytes than object {large.digest.hex()} from {piece.offset:,} on")
    return data


def encode_record(record: Record) -> bytes:
    """A record for others, to whom it does not matter when it was used here; `decode_record` is the inverse."""
    return _sealed(msgspec.json.encode(msgspec.structs.replace(record, used=0.0, pinned=False)))


def decode_record(encoded: bytes, kind: str, key: str) -> Record:
    """Raises `CorruptedError` for what is not that record."""
    title = f"the record {kind}/{key}"
    try:
        record = msgspec.json.decode(_unsealed(encoded, title), type=Record)
    except msgspec.DecodeError as error:
        raise CorruptedError(f"{title} cannot be read: {error}") from None
    if (record.kind, record.key) != (kind, key):
        raise CorruptedError(f"{title} arrived as {record.kind}/{record.key}")
    return record


def encode_blob(data: bytes) -> bytes:
    """Bytes as they are kept in a tier: compressed where that is worth it."""
    packed = compress(data)
    return _ZSTD + packed if len(packed) < _WORTH * len(data) else _RAW + data


def decode_blob(blob: bytes, most: int, title: str) -> bytes:
    """The inverse. Raises `CorruptedError`, which says `title`, for what is none, or has more than `most` bytes."""
    codec = blob[:1]
    if codec == _RAW:
        data = blob[1:]
    elif codec == _ZSTD:
        data = decompress(memoryview(blob)[1:], most, title)
    else:
        raise CorruptedError(f"{title} is no blob of ours: it begins with {codec!r}")
    if len(data) > most:
        raise CorruptedError(f"{title} has {len(data):,} bytes, more than {most:,}")
    return data


def _sealed(data: bytes) -> bytes:
    """With its hash in front: what is not named by its hash could be damaged and still be read."""
    return hashlib.sha256(data).digest() + data


def _unsealed(sealed: bytes, title: str) -> bytes:
    data = sealed[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != sealed[:DIGEST_BYTES]:
        raise CorruptedError(f"{title} is damaged: its {len(sealed):,} bytes have another hash")
    return data


def _packed(digests: list[bytes], sizes: Mapping[bytes, int]) -> Pack:
    return Pack(b"".join(digests), tuple(sizes[digest] for digest in digests))


def is_library(path: bytes) -> bool:
    """Whether it is a shared library, by its name."""
    name = path.rpartition(b"/")[2]
    return name.endswith(b".so") or b".so." in name


def _kind(path: bytes) -> int:
    """Files of one kind are packed side by side, in the order of the tree."""
    folder, _, name = path.rpartition(b"/")
    if name.endswith(b".pyc"):
        return 0
    if is_library(path):
        return 1
    if folder.endswith((b".dist-info", b".egg-info")) and name != b"RECORD":
        return 2
    return 3 if name.endswith(b".py") else 4


def _cut(store: Store, digest: bytes, size: int) -> Large:
    pieces = [
        hashlib.sha256(read_part(store, digest, offset, min(BLOB_BYTES, size - offset))).digest()
        for offset in range(0, size, BLOB_BYTES)
    ]
    return Large(digest, size, b"".join(pieces))


def _spread(kind: str, digest: str) -> str:
    return f"{kind}/{digest[:2]}/{digest[2:]}"
