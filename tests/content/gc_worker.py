"""One of several processes that add, keep, let go of and look at content at random, while others collect.

Arguments: the store, what to do ("use" or "collect"), a name, a seed. It goes on until there is a file `stop` beside
the store, and says after each round how many there were. It ends with status 0 unless it finds something missing that
it relies on, or something that is not what its name says.
"""

import hashlib
import io
import itertools
import random
import stat
import sys
from pathlib import Path

from farcall.content import Entry, Lease, Record, Store, Tree
from farcall.content.gc import collect
from farcall.errors import NotFoundError

# Few contents, so that everybody adds, finds and lets go of the same ones all the time.
CONTENTS = [bytes([number]) * size for number, size in enumerate([1, 10, 1000, 5000, 150_000] * 6)]
KEYS = [f"k{number}" for number in range(4)]


def entry(path: str, data: bytes) -> Entry:
    return Entry(path.encode(), stat.S_IFREG | 0o644, size=len(data), digest=hashlib.sha256(data).digest())


class User:
    """Works with leases and with the records of its own kind; looks at everybody's."""

    def __init__(self, store: Store, name: str, rng: random.Random, scratch: Path) -> None:
        self.store = store
        self.name = name
        self.rng = rng
        self.scratch = scratch
        self.seen: list[Tree] = []

    def work(self, lease: Lease) -> None:
        kept: list[Tree] = []
        for _ in range(self.rng.randrange(12)):
            action = self.rng.choice(["add", "add", "keep", "again", "again", "record", "delete", "merge", "look"])
            if action == "add":
                kept.append(self.add(lease))
            elif action == "keep":
                if (tree := self.keep_somebodys(lease)) is not None:
                    kept.append(tree)
            elif action == "again" and self.seen:
                tree = self.rng.choice(self.seen)
                try:
                    lease.keep_tree(tree.id)
                except NotFoundError:
                    self.seen.remove(tree)
                else:
                    kept.append(tree)
            elif action == "record" and kept:
                self.store.put_record(self.name, self.rng.choice(KEYS), trees=[self.rng.choice(kept).id])
            elif action == "delete":
                self.store.delete_record(self.name, self.rng.choice(KEYS))
            elif action == "merge" and kept:
                tree = Tree.of([*self.rng.choice(kept).under(b"base"), *self.add(lease).entries[1:]])
                lease.add_tree(tree)
                kept.append(tree)
            elif kept:
                self.look(self.rng.choice(kept))
        for tree in kept:
            self.look(tree)
        self.seen = [*self.seen, *kept][-30:]

    def add(self, lease: Lease) -> Tree:
        entries: list[Entry] = []
        for number in range(self.rng.randrange(1, 5)):
            data = self.rng.choice(CONTENTS)
            way = self.rng.choice(["bytes", "stream", "file", "move"])
            if way == "bytes":
                lease.add_bytes(data)
            elif way == "stream":
                lease.add_stream(io.BytesIO(data))
            else:
                file = self.scratch / f"{self.name}-{number}"
                file.write_bytes(data)
                lease.add_file(file, move=way == "move")
            entries.append(entry(str(number), data))
        tree = Tree.of(entries)
        lease.add_tree(tree)
        return tree

    def keep_somebodys(self, lease: Lease) -> Tree | None:
        """Rely on the tree of a record, which may be going this very moment: then it says so."""
        records = self.store.records()
        if not records:
            return None
        record = self.rng.choice(records)
        try:
            lease.keep_tree(record.trees[0])
        except NotFoundError:
            again = self.store.record(record.kind, record.key)
            assert again is None or again.trees != record.trees, f"{record} lost its tree"
            return None
        return self.store.tree(record.trees[0])

    def look(self, tree: Tree) -> None:
        assert self.store.tree(tree.id) == tree
        for one in tree:
            if one.digest:
                assert self.store.read(one.digest) in CONTENTS

    def check_own(self) -> None:
        """Nobody else deletes the records of this kind, so that theirs must all be there."""
        for record in self.store.records(self.name):
            for tree_id in record.trees:
                self.look(self.store.tree(tree_id))


def main() -> None:
    store, what, name, seed = Path(sys.argv[1]), *sys.argv[2:5]
    rng = random.Random(f"{seed} {name}")
    user = User(Store(store), name, rng, store.parent) if what == "use" else None
    for number in itertools.count(1):
        if user is None:
            collect(Store(store))
        else:
            with user.store.lease("use") as lease:
                user.work(lease)
            user.check_own()
        print(number, flush=True)
        if (store.parent / "stop").exists():
            break


def alive(records: list[Record], store: Store) -> tuple[set[str], set[bytes]]:
    """The trees and objects that records keep."""
    trees = {tree_id for record in records for tree_id in record.trees}
    return trees, {digest for tree_id in trees for digest in store.tree(tree_id).digests()}


if __name__ == "__main__":
    main()
