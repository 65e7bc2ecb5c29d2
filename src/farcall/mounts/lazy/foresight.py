"""What a start will open next, where no earlier start has shown it: from what it has opened, and what that says.

- A program, or a library, says which libraries it needs: the loader opens them at once, and theirs.
- Of a large one the loader reads the tables and what it writes into all over, and begins to run what it finds there.
- Who imports one module of a package imports more of them.
- What every start of Python opens, it will open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from farcall.content.store import Store
from farcall.content.tiers.layout import BLOB_BYTES, Pack, is_library, read_part
from farcall.errors import FarcallError
from farcall.mounts.lazy import elf
from farcall.mounts.lazy.ahead import Ahead
from farcall.mounts.lazy.elf import Elf
from farcall.mounts.lazy.index import Wanted
from farcall.mounts.lazy.names import Names, group_of, is_program, package_of
from farcall.mounts.lazy.packs import Packs
from farcall.mounts.lazy.parts import Parts, pieces
from farcall.mounts.lazy.recent import Recent
from farcall.mounts.lazy.threads import Threads

_MOST_PACKS = 24  # of one package
_MOST_EXTENSIONS = 16  # libraries of a package that its modules are in
_MOST_PIECES = 128  # of one large library; of a larger one only what the loader reads first
_FIRST_PIECES = 8
_MOST_NEEDED = 64  # libraries that one names


@dataclass
class _Tree:
    names: Names
    packs: dict[bytes, Pack]  # by the objects in them
    followed: set[bytes] = field(default_factory=set[bytes])  # programs and libraries
    groups: set[bytes] = field(default_factory=set[bytes])


class Foresight:
    """For the trees of a store, a few of which it knows at a time. All methods belong to one event loop, and raise
    nothing."""

    def __init__(self, store: Store, packs: Packs, parts: Parts, threads: Threads, ahead: Ahead) -> None:
        self._store = store
        self._packs = packs
        self._parts = parts
        self._threads = threads
        self._ahead = ahead
        self._trees = Recent[_Tree](lambda tree_id: asyncio.ensure_future(self._look(tree_id)))
        self._tasks: set[asyncio.Task[None]] = set()

    def begin_start(self, tree_id: str) -> None:
        """A container is about to start from this tree."""
        self._spawn(self._fetch_start(tree_id))

    def opened(self, wanted: Wanted) -> None:
        """A container has opened what is not, or was not, here."""
        if group_of(wanted.path) or is_library(wanted.path) or is_program(wanted.path):
            self._spawn(self._go_on(wanted))

    # --- inside

    async def _fetch_start(self, tree_id: str) -> None:
        tree = await self._trees.get(tree_id)
        self._fetch_small(tree_id, tree, tree.names.starts)
        for interpreter in tree.names.interpreters:
            self._follow_soon(tree_id, tree, interpreter.digest, interpreter.size)
            self._fetch_small(tree_id, tree, tree.names.standard_library(interpreter))

    async def _go_on(self, wanted: Wanted) -> None:
        tree = await self._trees.get(wanted.tree_id)
        group = group_of(wanted.path)
        if group is None:
            self._follow_soon(wanted.tree_id, tree, wanted.digest, wanted.size)
        elif group not in tree.groups:
            tree.groups.add(group)
            package = package_of(wanted.path) or b""
            for library in tree.names.extensions.get(package, ())[:_MOST_EXTENSIONS]:
                self._follow_soon(wanted.tree_id, tree, library.digest, library.size)
            self._fetch_small(wanted.tree_id, tree, tree.names.groups.get(group, ()))

    def _follow_soon(self, tree_id: str, tree: _Tree, digest: bytes, size: int) -> None:
        if digest not in tree.followed:
            tree.followed.add(digest)
            self._spawn(self._follow(Wanted(digest, size, tree_id, b""), tree))

    async def _follow(self, wanted: Wanted, tree: _Tree) -> None:
        """Fetch what of this program or library is read first, and the libraries that it needs."""
        head = await self._read(wanted, tree, 0, elf.HEAD_BYTES)
        found = elf.parse(head)
        if found is None:
            return
        if wanted.size > BLOB_BYTES:
            self._fetch_mapped(wanted, found)
        dynamic = await self._read(wanted, tree, found.dynamic, found.dynamic_size)
        for place in elf.names_needed(found, dynamic)[:_MOST_NEEDED]:
            name, _, _ = (await self._read(wanted, tree, place, elf.MOST_NAME_BYTES)).partition(b"\0")
            for library in tree.names.libraries.get(name, ()):
                self._follow_soon(wanted.tree_id, tree, library.digest, library.size)

    def _fetch_mapped(self, wanted: Wanted, found: Elf) -> None:
        """Fetch what the loader maps, in the order in which it comes to it."""
        order: dict[int, None] = {}
        for segment in sorted(found.segments, key=lambda segment: not segment.is_writable):
            if segment.size > 0 and segment.offset + segment.size <= wanted.size:
                order.update(dict.fromkeys(pieces(segment.offset, segment.size)))
        most = _MOST_PIECES if len(order) <= _MOST_PIECES else _FIRST_PIECES
        for number in list(order)[:most]:
            self._ahead.add(lambda number=number: self._parts.fetch(wanted, number))

    def _fetch_small(self, tree_id: str, tree: _Tree, digests: Iterable[bytes]) -> None:
        """Fetch the packs of these objects."""
        found = {id(pack): pack for digest in digests if (pack := tree.packs.get(digest)) is not None}
        for pack in list(found.values())[:_MOST_PACKS]:
            self._packs.fetch_ahead(tree_id, pack)

    async def _read(self, wanted: Wanted, tree: _Tree, offset: int, size: int) -> bytes:
        """Bytes of an object, fewer where there are no more; none where they cannot be had."""
        size = min(size, wanted.size - offset)
        if size <= 0 or offset < 0:
            return b""
        if wanted.size > BLOB_BYTES:
            for number in pieces(offset, size):
                if not self._parts.has(wanted, number):
                    await self._ahead.add(lambda number=number: self._parts.fetch(wanted, number), is_first=True)
            data = self._parts.at_hand(wanted, offset, size)
        else:
            data = self._packs.peek(wanted.digest, offset, size)
            if data is None and (pack := tree.packs.get(wanted.digest)) is not None:
                await self._packs.fetch_ahead(wanted.tree_id, pack)
                data = self._packs.peek(wanted.digest, offset, size)
        if data is None:
            with suppress(FarcallError):
                return read_part(self._store, wanted.digest, offset, size)
        return data or b""

    async def _look(self, tree_id: str) -> _Tree:
        located = self._packs.look_up(tree_id)
        names = await self._threads.run(lambda: Names.of(self._store.tree(tree_id)))
        return _Tree(names, (await located).located.packs)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        async def do() -> None:
            with suppress(FarcallError):  # who opens it hears of it
                await work

        task = asyncio.ensure_future(do())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
