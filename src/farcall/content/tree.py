"""Trees: sorted manifests of a file system, named by the hash of their encoding."""

import hashlib
import re
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from functools import cached_property
from os import fsdecode, fsencode
from typing import NamedTuple

import msgspec

from farcall.errors import CorruptedError, InvalidError, NotFoundError

DIGEST_BYTES = 32  # SHA-256
MAGIC = b"farcall tree 1\n"  # in front of the msgpack array of entries
MAX_NAME = 255  # bytes of one component, as in Linux's file systems
MAX_TARGET = 4095  # bytes of a symlink's target, PATH_MAX without its zero
MAX_ID = 2**32 - 2  # of users and groups; 2**32 - 1 means "no change" to chown

FIRST_TIME_NS, LAST_TIME_NS = -(2**63), 2**63 - 1

_KINDS = frozenset({stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK})
# Attributes that overlayfs takes for instructions: with them a tree could show what belongs to another one.
_OVERLAY_ATTRIBUTES = (b"trusted.overlay.", b"user.overlay.")


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One name of a tree, with its inode.

    `path` is relative, its components joined by "/"; "" is the root directory itself. `mode` is st_mode, type bits
    included: directory, regular file, symlink, FIFO or socket. `uid` and `gid` are as the container sees them. Regular
    files have `size` and, unless empty, the `digest` of their bytes; symlinks have a `target` and mode 0777. Entries
    with the same `link` other than 0 are one inode (hard links) and equal in everything but the path.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: bytes = b""
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    link: int = 0

    @property
    def is_directory(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


class Diff(NamedTuple):
    """What a layer changes in the tree below it.

    First the paths in `removed` go, with all that is in them; then what is in the directories of `opaque`, which
    themselves stay; then `entries` are put in. An entry replaces what stands at its path, except that a directory put
    on a directory keeps what is in it. Parents that are nowhere are made (mode 0755, root's); one that is no directory
    below is replaced by one. `entries` need no order; their `link` numbers are their own, and say nothing of the tree
    below.
    """

    entries: Sequence[Entry] = ()
    removed: frozenset[bytes] = frozenset()
    opaque: frozenset[bytes] = frozenset()


def default_directory(path: bytes) -> Entry:
    """A directory of which nothing is known: mode 0755, root's, from the beginning of time."""
    return Entry(path, stat.S_IFDIR | 0o755)


def sort_key(path: bytes) -> bytes:
    """Paths sorted by this are in the order of trees: depth first, what is in a directory right behind it."""
    return path.replace(b"/", b"\0")


class Tree:
    """A file system as a value: its entries, root directory first, in the order of `sort_key`.

    Two trees with the same entries have the same `id`. Every path but the root has its parent in the tree, a
    directory. The constructor takes entries that are known to be so; `Tree.of` takes any.
    """

    def __init__(self, entries: tuple[Entry, ...], encoded: bytes | None = None) -> None:
        self.entries = entries
        if encoded is not None:
            self.encoded = encoded

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Tree":
        """A tree of entries in any order: sorts them, makes parents that are missing (as `default_directory`) and
        numbers hard links anew. Raises `InvalidError` for what no tree can hold, two entries at one path included."""
        by_path: dict[bytes, Entry] = {}
        for entry in entries:
            if entry.path in by_path:
                raise InvalidError(f"a tree has two entries at {shown(entry.path)}")
            by_path[entry.path] = entry
        for path in list(by_path):
            for parent in parents(path):
                by_path.setdefault(parent, default_directory(parent))
        by_path.setdefault(b"", default_directory(b""))
        made = cls(_in_order(by_path.values()))
        made.validate()
        return made

    @classmethod
    def of_found(cls, entries: Iterable[Entry]) -> "Tree":
        """A tree of what a file system holds, which needs no validation: no path twice, and no parent missing. Hard
        links are numbered anew, from whatever numbers they have."""
        return cls(_in_order(entries))

    @classmethod
    def decode(cls, encoded: bytes, tree_id: str | None = None) -> "Tree":
        """The inverse of `encoded`. With a `tree_id` the bytes are checked against it; without one they may come from
        anywhere, and the tree is validated. Raises `CorruptedError`."""
        if tree_id is not None and hashlib.sha256(encoded).hexdigest() != tree_id:
            raise CorruptedError(f"tree {tree_id} is damaged: its {len(encoded):,} bytes have another hash")
        if not encoded.startswith(MAGIC):
            raise CorruptedError(f"no tree: it begins with {encoded[: len(MAGIC)]!r}, not with {MAGIC!r}")
        try:
            made = cls(_DECODER.decode(memoryview(encoded)[len(MAGIC) :]), encoded)
            if tree_id is None:
                made.validate()
        except (msgspec.DecodeError, InvalidError) as error:
            raise CorruptedError(f"a tree that cannot be read: {error}") from None
        return made

    @cached_property
    def encoded(self) -> bytes:
        """`MAGIC`, then a msgpack array of entries, each an array of its fields."""
        return MAGIC + _ENCODER.encode(self.entries)

    @cached_property
    def id(self) -> str:
        """SHA-256 of `encoded`, in hex."""
        return hashlib.sha256(self.encoded).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Tree({self.id[:12]}, {len(self.entries):,} entries)"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __contains__(self, path: bytes) -> bool:
        return path in self._by_path

    @cached_property
    def _by_path(self) -> dict[bytes, Entry]:
        return {entry.path: entry for entry in self.entries}

    @cached_property
    def _children(self) -> dict[bytes, list[Entry]]:
        found: dict[bytes, list[Entry]] = {entry.path: [] for entry in self.entries if entry.is_directory}
        for entry in self.entries[1:]:
            found[entry.path.rpartition(b"/")[0]].append(entry)
        return found

    @property
    def size(self) -> int:
        """Bytes of all files, each hard-linked one counted once."""
        linked: set[int] = set()
        total = 0
        for entry in self.entries:
            if entry.link not in linked:
                total += entry.size
            if entry.link:
                linked.add(entry.link)
        return total

    def digests(self) -> set[bytes]:
        """The objects that the tree needs."""
        found = {entry.digest for entry in self.entries}
        found.discard(b"")
        return found

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`, symlinks not followed; None where there is none."""
        return self._by_path.get(path)

    def children(self, path: bytes) -> list[Entry]:
        """What is directly in a directory, sorted by name. Raises `NotFoundError` where there is none."""
        found = self._children.get(path)
        if found is None:
            raise NotFoundError(f"the tree {self.id[:12]} has no directory {shown(path)}")
        return list(found)

    def inside(self, path: bytes) -> tuple[Entry, ...]:
        """All that is in a directory, at any depth; the directory itself is not."""
        if not path:
            return self.entries[1:]
        prefix = sort_key(path) + b"\0"
        first = bisect_left(self.entries, prefix, key=_entry_key)
        # "\1" is the least byte above the separator "\0".
        return self.entries[first : bisect_left(self.entries, prefix[:-1] + b"\1", lo=first, key=_entry_key)]

    def select(self, pattern: str | bytes) -> list[Entry]:
        """Entries whose path matches a pattern, in order: `*`, `?` and `[...]` stay within a name, `**` is any number
        of directories. A leading "/" and "." components are ignored; "" and "." are the root."""
        found = [self.entries[0]]
        names = [name for name in fsencode(pattern).split(b"/") if name not in (b"", b".")]
        for place, name in enumerate(names):
            directories = [entry for entry in found if entry.is_directory]
            step: dict[bytes, Entry] = {}
            if name == b"**":
                is_last = place == len(names) - 1
                step |= {entry.path: entry for entry in directories}
                for directory in directories:
                    within = self.inside(directory.path)
                    step |= {entry.path: entry for entry in within if is_last or entry.is_directory}
            else:
                # Shells and Go negate a class with "^" as well as with "!".
                matches = re.compile(translate(fsdecode(name).replace("[^", "[!"))).match
                for directory in directories:
                    within = self._children[directory.path]
                    step |= {entry.path: entry for entry in within if matches(fsdecode(entry.name))}
            found = list(step.values())
        return sorted(found, key=_entry_key)

    def subtree(self, path: bytes) -> "Tree":
        """The directory at `path` as a tree of its own. Raises `NotFoundError` where there is no directory."""
        root = self.get(path)
        if root is None or not root.is_directory:
            raise NotFoundError(f"the tree {self.id[:12]} has no directory {shown(path)}")
        skip = len(path) + 1 if path else 0
        moved = [msgspec.structs.replace(root, path=b"")]
        moved += [msgspec.structs.replace(entry, path=entry.path[skip:]) for entry in self.inside(path)]
        return Tree(_in_order(moved))

    def under(self, path: bytes) -> "Tree":
        """This tree with its root at `path`; the directories that lead there are `default_directory`."""
        if not path:
            return self
        prefix = path + b"/"
        moved = [msgspec.structs.replace(self.entries[0], path=path)]
        moved += [msgspec.structs.replace(entry, path=prefix + entry.path) for entry in self.entries[1:]]
        return Tree.of(moved)

    def merge(self, diff: Diff) -> "Tree":
        """The tree that shows when `diff` lies on this one: what overlayfs shows. Raises `InvalidError` for a diff
        that has two entries at one path, or an entry within something that is no directory."""
        added: dict[bytes, Entry] = {}
        for entry in diff.entries:
            if entry.path in added:
                raise InvalidError(f"a layer has two entries at {shown(entry.path)}")
            added[entry.path] = entry
        result = self._what_stays(diff, added)
        base_links = max((entry.link for entry in self.entries), default=0)
        for entry in diff.entries:
            result[entry.path] = msgspec.structs.replace(entry, link=entry.link + base_links) if entry.link else entry
        for entry in diff.entries:
            for parent in parents(entry.path):
                above = result.get(parent)
                if above is None or not above.is_directory:
                    if parent in added:
                        raise InvalidError(
                            f"a layer has {shown(entry.path)} within a {shown(parent)} that is no directory"
                        )
                    result[parent] = default_directory(parent)
        made = Tree(_in_order(result.values()))
        made.validate()
        return made

    def _what_stays(self, diff: Diff, added: dict[bytes, Entry]) -> dict[bytes, Entry]:
        """The entries that a diff neither removes nor covers with something that is no directory."""
        stays: dict[bytes, Entry] = {}
        covered: bytes | None = None  # what begins with this is gone
        for entry in self.entries:
            path = entry.path
            if covered is not None and path.startswith(covered):
                continue
            covered = None
            if path in diff.removed:
                covered = path + b"/" if path else b""
                continue
            above = added.get(path)
            if path in diff.opaque or (above is not None and not (above.is_directory and entry.is_directory)):
                covered = path + b"/" if path else b""
            stays[path] = entry
        stays.setdefault(b"", default_directory(b""))
        return stays

    def validate(self) -> None:
        """Raises `InvalidError` unless this is a tree in the one form that trees have."""
        if not self.entries or self.entries[0].path or not self.entries[0].is_directory:
            raise InvalidError("a tree's first entry must be its root directory")
        directories: set[bytes] = set()
        inodes: dict[int, Entry] = {}
        several: set[int] = set()
        before = None
        for entry in self.entries:
            path = entry.path
            if path:
                key = sort_key(path)
                if before is not None and key <= before:
                    raise InvalidError(f"a tree's entries are out of order at {shown(path)}")
                before = key
                parent, _, name = path.rpartition(b"/")
                if parent not in directories:
                    raise InvalidError(f"{shown(path)} of a tree is in no directory")
                if not 0 < len(name) <= MAX_NAME or name in (b".", b"..") or b"\0" in name or path.startswith(b"/"):
                    raise InvalidError(f"{shown(name)} in {shown(parent)} of a tree is no name for a file")
            if entry.is_directory:
                directories.add(path)
            _validate_inode(entry)
            if entry.link:
                first = inodes.setdefault(entry.link, entry)
                if first is not entry:
                    several.add(entry.link)
                    if msgspec.structs.replace(entry, path=first.path) != first:
                        raise InvalidError(f"{shown(path)} and {shown(first.path)} of a tree are one file that differs")
        if list(inodes) != list(range(1, len(inodes) + 1)) or len(several) != len(inodes):
            raise InvalidError("a tree's hard links are not numbered from 1 in the order of their paths")


def parents(path: bytes) -> Iterator[bytes]:
    """The directories that `path` is in, the nearest first, the root last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def shown(path: bytes) -> str:
    """A path for people: "/" in front, what is no UTF-8 escaped."""
    return "/" + path.decode(errors="backslashreplace")


def is_kept_attribute(name: bytes) -> bool:
    """Whether trees carry the extended attribute: those of users, POSIX ACLs and file capabilities.

    The others belong to the host (SELinux labels, "trusted.") or to overlayfs.
    """
    return (name.startswith(b"user.") and not name.startswith(_OVERLAY_ATTRIBUTES)) or name in (
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    )


def _validate_inode(entry: Entry) -> None:
    kind = entry.mode & 0o170000
    wrong = None
    if kind not in _KINDS or entry.mode > 0o177777 or entry.mode < 0:
        wrong = f"has mode {entry.mode:o}: neither directory, file, symlink, FIFO nor socket"
    elif not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        wrong = f"belongs to {entry.uid}:{entry.gid}, which is no user and group"
    elif not FIRST_TIME_NS <= entry.mtime_ns <= LAST_TIME_NS:
        wrong = f"was changed at {entry.mtime_ns} ns, which no file system can say"
    elif (entry.size or entry.digest) and kind != stat.S_IFREG:
        wrong = "has content and is no regular file"
    elif entry.size < 0 or len(entry.digest) != (DIGEST_BYTES if entry.size else 0):
        wrong = f"has {entry.size} bytes and a digest of {len(entry.digest)}"
    elif (kind == stat.S_IFLNK) != bool(entry.target) or len(entry.target) > MAX_TARGET or b"\0" in entry.target:
        wrong = "has a symlink's target that no symlink can have, or none"
    elif kind == stat.S_IFLNK and entry.mode != stat.S_IFLNK | 0o777:
        wrong = "is a symlink with a mode of its own"
    elif entry.link and kind == stat.S_IFDIR:
        wrong = "is a directory with hard links"
    elif entry.link < 0:
        wrong = "has a negative link number"
    elif entry.xattrs:
        names = [name for name, _ in entry.xattrs]
        if names != sorted(set(names)):
            wrong = "has extended attributes that are out of order"
        elif refused := [name for name in names if not is_kept_attribute(name)]:
            wrong = f"has an extended attribute that trees do not carry: {refused[0]!r}"
    if wrong is not None:
        raise InvalidError(f"{shown(entry.path)} of a tree {wrong}")


def _entry_key(entry: Entry) -> bytes:
    return entry.path.replace(b"/", b"\0")


def _in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Sorted, and hard links numbered from 1 in that order; a link that has become alone is none."""
    entries = sorted(entries, key=_entry_key)
    count: dict[int, int] = {}
    for entry in entries:
        if entry.link:
            count[entry.link] = count.get(entry.link, 0) + 1
    if not count:
        return tuple(entries)
    numbers: dict[int, int] = {}
    for place, entry in enumerate(entries):
        if entry.link:
            number = numbers.setdefault(entry.link, len(numbers) + 1) if count[entry.link] > 1 else 0
            if number != entry.link:
                entries[place] = msgspec.structs.replace(entry, link=number)
    return tuple(entries)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[Entry, ...])
