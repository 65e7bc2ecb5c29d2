"""A content store as a tier: what one machine has, in the form in which others fetch it."""

import threading

from farcall.content import profiles
from farcall.content.store import Store
from farcall.content.tiers import layout
from farcall.content.tiers.layout import Index, Large, Pack, Piece
from farcall.content.tiers.partial import arrived_piece
from farcall.errors import InvalidError, NotFoundError


class StoreTier:
    """The trees of a store, and the packs and pieces that their indexes name, made when they are asked for.

    It gives whatever it is asked for that the store has. Who may ask is the affair of whoever it answers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._indexed: dict[str, Index] = {}
        self._packs: dict[str, Pack] = {}
        self._pieces: dict[str, tuple[Large, Piece]] = {}

    @property
    def title(self) -> str:
        return f"the content store {self._store.root}"

    def get(self, name: str) -> bytes:
        kind, _, rest = name.partition("/")
        match kind:
            case "trees":
                return layout.encode_blob(self._store.tree(rest).encoded)
            case "indexes":
                return layout.encode_blob(layout.encode_index(self.index(rest)))
            case "packs" | "pieces":
                return layout.encode_blob(self._content(name))
            case "records":
                return self._record(*rest.split("/", 1))
            case _:
                raise InvalidError(f"{name!r} is no blob of content")

    def index(self, tree_id: str) -> Index:
        """Where the objects of a tree are. Made when it is first asked for, which reads the tree's large objects."""
        index = self._indexed.get(tree_id)
        if index is None:
            index = layout.stored_index(self._store, tree_id)
            if index is None:
                index = layout.make_index(self._store, self._store.tree(tree_id))
                layout.store_index(self._store, tree_id, index)
            self._learn(tree_id, index)
        return index

    def _learn(self, tree_id: str, index: Index) -> None:
        with self._lock:
            self._indexed[tree_id] = index
            self._packs.update((pack.name, pack) for pack in index.packs)
            for large in index.large:
                for number in range(len(large)):
                    piece = large.piece(number)
                    self._pieces[piece.name] = large, piece

    def _content(self, name: str) -> bytes:
        if name not in self._packs and name not in self._pieces:
            self._read_indexes()
        if (pack := self._packs.get(name)) is not None:
            return layout.pack_bytes(self._store, pack)
        if (found := self._pieces.get(name)) is not None:
            large, piece = found
            try:
                return layout.read_part(self._store, large.digest, piece.offset, piece.size)
            except NotFoundError:
                data = arrived_piece(self._store, large, piece)
                if data is None:
                    raise
                return data
        raise NotFoundError(f"{self.title} has no {name}")

    def check(self, name: str, blob: bytes) -> None:
        """Raises `CorruptedError` where a pack or piece that an index in the store names is another one, and
        `NotFoundError` where none names it."""
        if name not in self._packs and name not in self._pieces:
            self._read_indexes()
        if (pack := self._packs.get(name)) is not None:
            layout.open_pack(pack, frozenset(digest for digest, _, _ in pack.objects()), blob)
        elif (found := self._pieces.get(name)) is not None:
            layout.open_piece(*found, blob)
        else:
            raise NotFoundError(f"{self.title} knows of no {name}")

    def _read_indexes(self) -> None:
        """Learn the indexes that others have put into the store, and the packs of start profiles."""
        for tree_id in layout.indexed_trees(self._store):
            if tree_id not in self._indexed and (index := layout.stored_index(self._store, tree_id)) is not None:
                self._learn(tree_id, index)
        for tree_id in profiles.profiled_trees(self._store):
            packs = profiles.read(self._store, tree_id).packs
            with self._lock:
                self._packs.update((pack.name, pack) for pack in packs)

    def _record(self, kind: str, key: str) -> bytes:
        record = self._store.record(kind, key)
        if record is None:
            raise NotFoundError(f"{self.title} has no record {kind}/{key}")
        return layout.encode_blob(layout.encode_record(record))
