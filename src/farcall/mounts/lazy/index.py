"""What the file system has in it: the objects of the store's partial trees, by the kernel's numbers for them.

A number (node) says itself which object it is: the first 8 bytes of its digest. So a server that takes over from one
that was killed understands the numbers which that one gave.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from farcall.content.store import Store
from farcall.content.tree import DIGEST_BYTES, shown
from farcall.errors import FarcallError
from farcall.mounts.lazy import fuse

_FOLDERS_AT = 0x100  # the node of folder "00"
_FOLDERS = range(_FOLDERS_AT, _FOLDERS_AT + 256)
_HEX = set(b"0123456789abcdef")
MOST_COMPLETE = 8  # trees of which all has arrived, above which all is looked up anew
MOST_ARRIVED = 20_000  # objects of no tree, the same


def folder_node(name: bytes) -> int | None:
    """The node of one of the 256 folders, None for another name."""
    return _FOLDERS_AT + int(name, 16) if len(name) == 2 and _HEX.issuperset(name) else None


def is_folder(node: int) -> bool:
    """Whether a node is a folder's, the root's included."""
    return node == fuse.ROOT or node in _FOLDERS


def digest_in(folder: int, name: bytes) -> bytes | None:
    """The object that a name in a folder is, None for a name that is none's."""
    if folder not in _FOLDERS or len(name) != 2 * DIGEST_BYTES - 2 or not _HEX.issuperset(name):
        return None
    return bytes([folder - _FOLDERS_AT]) + bytes.fromhex(name.decode())


def node_of(digest: bytes) -> int:
    """The number by which the kernel knows an object."""
    return int.from_bytes(digest[:8])


class Wanted(NamedTuple):
    """An object of a partial tree."""

    digest: bytes
    size: int
    tree_id: str
    path: bytes  # in that tree

    @property
    def title(self) -> str:
        """For messages."""
        return f"{shown(self.path)} of the tree {self.tree_id[:12]} (object {self.digest.hex()[:12]})"


@dataclass
class Index:
    """All objects of the partial trees that it has seen.

    Of a large image's, some 20 MB are known, and a process serves all images of a store for months: what is known of
    trees that have arrived goes, a few of them at a time. Their objects are then found by their numbers, in the store.
    """

    store: Store
    trees: set[str] = field(default_factory=set[str])
    _objects: dict[bytes, Wanted] = field(default_factory=dict[bytes, Wanted])
    _nodes: dict[int, bytes] = field(default_factory=dict[int, bytes])
    _arrivals: int = 0

    def __len__(self) -> int:
        """Objects that are known."""
        return len(self._objects)

    def add(self, tree_id: str) -> None:
        """See a tree, partial or not. One that cannot be read is left out."""
        if tree_id in self.trees:
            return
        self._forget()
        with suppress(FarcallError):
            for entry in self.store.tree(tree_id):
                if entry.digest and entry.digest not in self._objects:
                    self._objects[entry.digest] = Wanted(entry.digest, entry.size, tree_id, entry.path)
                    self._nodes.setdefault(node_of(entry.digest), entry.digest)
            self.trees.add(tree_id)

    def _forget(self) -> None:
        partial = os.listdir(self.store.root / "partial")
        if len(self.trees.difference(partial)) > MOST_COMPLETE or self._arrivals > MOST_ARRIVED:
            for known in (self.trees, self._objects, self._nodes):
                known.clear()
            self._arrivals = 0

    def find(self, digest: bytes) -> Wanted | None:
        """An object; None for one that no partial tree names, and for one whose number another one has."""
        if digest not in self._objects:
            for tree_id in os.listdir(self.store.root / "partial"):
                self.add(tree_id)
        found = self._objects.get(digest)
        return found if found and self._nodes[node_of(digest)] == digest else None

    def at(self, node: int) -> Wanted | None:
        """The object of a number that some server has given. One that has arrived meanwhile may be in no partial tree
        any more."""
        digest = self._nodes.get(node) or self._arrived(node)
        if digest is None:
            self.find(b"")
            digest = self._nodes.get(node)
        return self._objects[digest] if digest else None

    def _arrived(self, node: int) -> bytes | None:
        start = node.to_bytes(8).hex()
        folder = self.store.objects / start[:2]
        for name in os.listdir(folder):
            if name.startswith(start[2:]):
                digest = bytes.fromhex(start[:2] + name)
                size = (folder / name).stat().st_size
                self._objects[digest] = Wanted(digest, size, "", b"")
                self._nodes[node] = digest
                self._arrivals += 1
                return digest
        return None
