"""Trees as values. What overlayfs really shows for a diff: test_upper.py."""

import hashlib
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.content import Diff, Entry, Tree
from farcall.content.tree import MAGIC, shown, sort_key
from farcall.errors import CorruptedError, InvalidError, NotFoundError

DIRECTORY, FILE, SYMLINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def directory(path: str, **fields: int) -> Entry:
    return Entry(path.encode(), DIRECTORY, **fields)


def file(path: str, content: str = "x", link: int = 0) -> Entry:
    data = content.encode()
    return Entry(path.encode(), FILE, size=len(data), digest=hashlib.sha256(data).digest() if data else b"", link=link)


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), SYMLINK, target=target.encode())


def paths(tree: Tree) -> list[str]:
    return [entry.path.decode() for entry in tree]


# A small alphabet, so that directories, files and removals meet at the same paths. "-" sorts before "/", "0" after it.
names = st.sampled_from([b"a", b"b", b"a-", b"a0", b"\xff"])
some_paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


@st.composite
def entries(draw: st.DrawFn, path: bytes) -> Entry:
    kind = draw(st.sampled_from([stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO]))
    content = draw(st.binary(max_size=2)) if kind == stat.S_IFREG else b""
    return Entry(
        path,
        kind | (0o777 if kind == stat.S_IFLNK else draw(st.integers(0, 0o7777))),
        uid=draw(st.integers(0, 3)),
        mtime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        size=len(content),
        digest=hashlib.sha256(content).digest() if content else b"",
        target=b"../x" if kind == stat.S_IFLNK else b"",
        xattrs=((b"user.x", b"\0"),) if draw(st.booleans()) else (),
    )


@st.composite
def layers(draw: st.DrawFn) -> list[Entry]:
    """Entries that may stand in one layer: none is within one that is no directory. Some are hard links."""
    made: dict[bytes, Entry] = {}
    for path in sorted(draw(st.sets(some_paths, max_size=8)), key=sort_key):
        above = [made[path[:place]] for place in range(len(path)) if path[:place] in made]
        if all(entry.is_directory for entry in above if path.startswith(entry.path + b"/")):
            made[path] = draw(entries(path))
    files = [entry for entry in made.values() if not entry.is_directory]
    if len(files) > 1 and draw(st.booleans()):
        linked = msgspec.structs.replace(files[0], link=7)
        made[linked.path] = linked
        made[files[-1].path] = msgspec.structs.replace(linked, path=files[-1].path)
    return list(made.values())


trees = layers().map(Tree.of)


@given(trees)
def test_encoding_keeps_everything(tree: Tree) -> None:
    again = Tree.decode(tree.encoded)
    assert again == tree and again.id == tree.id == hashlib.sha256(tree.encoded).hexdigest()
    assert Tree.decode(tree.encoded, tree.id) == tree


@given(layers(), st.randoms(use_true_random=False))
def test_the_order_of_the_entries_given_does_not_matter(given_entries: list[Entry], random: object) -> None:
    shuffled = list(given_entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Tree.of(shuffled).id == Tree.of(given_entries).id


@given(trees)
def test_a_directory_comes_right_before_what_is_in_it(tree: Tree) -> None:
    for place, entry in enumerate(tree.entries):
        within = [other for other in tree if other.path.startswith(entry.path + b"/" if entry.path else b"")][
            0 if entry.path else 1 :
        ]
        assert list(tree.entries[place + 1 : place + 1 + len(within)]) == within
        assert list(tree.inside(entry.path)) == within
        if entry.is_directory:
            assert tree.children(entry.path) == [
                other for other in within if b"/" not in other.path[len(entry.path) + 1 :]
            ]


@settings(max_examples=300)
@given(trees, layers(), st.frozensets(some_paths, max_size=3), st.frozensets(some_paths, max_size=3))
def test_merge_against_a_file_system_in_memory(
    base: Tree, added: list[Entry], removed: frozenset[bytes], opaque: frozenset[bytes]
) -> None:
    """The contract of `Diff`, word for word, on a dict."""
    model = {entry.path: entry for entry in base}

    def remove_inside(path: bytes) -> None:
        for other in [other for other in model if other.startswith(path + b"/")]:
            del model[other]

    for path in removed:
        remove_inside(path)
        model.pop(path, None)
    for path in opaque:
        remove_inside(path)
    for entry in sorted(added, key=lambda entry: sort_key(entry.path)):
        parts = entry.path.split(b"/")
        for count in range(1, len(parts)):
            parent = b"/".join(parts[:count])
            if parent not in model or not model[parent].is_directory:
                model[parent] = Entry(parent, DIRECTORY)
        if not (entry.is_directory and entry.path in model and model[entry.path].is_directory):
            remove_inside(entry.path)
        model[entry.path] = msgspec.structs.replace(entry, link=entry.link + 100 if entry.link else 0)

    merged = base.merge(Diff(added, removed, opaque))
    merged.validate()
    assert merged == Tree.of(model.values())


@given(trees)
def test_a_subtree_put_back_is_the_same(tree: Tree) -> None:
    for entry in tree:
        if entry.is_directory:
            part = tree.subtree(entry.path)
            part.validate()
            assert part.under(entry.path).subtree(entry.path) == part
            assert [inner.digest for inner in part][1:] == [inner.digest for inner in tree.inside(entry.path)]


def test_the_format() -> None:
    tree = Tree.of([file("b"), directory("a", uid=1)])
    assert tree.encoded.startswith(MAGIC)
    fields = msgspec.msgpack.decode(tree.encoded[len(MAGIC) :])
    assert fields == [
        [b"", DIRECTORY, 0, 0, 0, 0, b"", b"", [], 0],
        [b"a", DIRECTORY, 1, 0, 0, 0, b"", b"", [], 0],
        [b"b", FILE, 0, 0, 0, 1, hashlib.sha256(b"x").digest(), b"", [], 0],
    ]


def test_missing_parents_are_made() -> None:
    tree = Tree.of([file("a/b/c")])
    assert paths(tree) == ["", "a", "a/b", "a/b/c"]
    assert tree.get(b"a/b") == directory("a/b") and tree.get(b"a/x") is None


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (file("../x"), "no name for a file"),
        (file("a/./x"), "no name for a file"),
        (file("a//x"), "no name for a file"),
        (file("/x"), "no name for a file"),
        (file("n" * 256), "no name for a file"),
        (file("a\0b"), "no name for a file"),
        (Entry(b"d", stat.S_IFBLK | 0o600), "neither directory, file"),
        (Entry(b"d", stat.S_IFCHR), "neither directory, file"),
        (Entry(b"d", DIRECTORY, uid=2**32 - 1), "no user and group"),
        (Entry(b"d", DIRECTORY, size=1, digest=bytes(32)), "no regular file"),
        (Entry(b"f", FILE, size=1), "1 bytes and a digest of 0"),
        (Entry(b"f", FILE, digest=bytes(32)), "0 bytes and a digest of 32"),
        (Entry(b"l", SYMLINK), "no symlink can have"),
        (Entry(b"l", SYMLINK, target=b"x" * 4096), "no symlink can have"),
        (Entry(b"f", FILE, target=b"x"), "no symlink can have"),
        (Entry(b"l", stat.S_IFLNK | 0o600, target=b"x"), "mode of its own"),
        (Entry(b"f", FILE, xattrs=((b"user.b", b""), (b"user.a", b""))), "out of order"),
        (Entry(b"f", FILE, xattrs=((b"trusted.overlay.redirect", b"/aa"),)), "do not carry"),
        (Entry(b"f", FILE, xattrs=((b"user.overlay.metacopy", b""),)), "do not carry"),
    ],
)
def test_what_no_tree_can_hold(entry: Entry, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        Tree.of([entry])
    encoded = MAGIC + msgspec.msgpack.encode([directory(""), entry])
    with pytest.raises(CorruptedError):
        Tree.decode(encoded)


def test_entries_that_contradict_each_other() -> None:
    with pytest.raises(InvalidError, match="two entries at /a"):
        Tree.of([file("a"), directory("a")])
    with pytest.raises(InvalidError, match="in no directory"):
        Tree.of([file("a"), file("a/b")])
    with pytest.raises(InvalidError, match="one file that differs"):
        Tree.of([file("a", link=1), file("b", "y", link=1)])


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"something else",
        MAGIC,
        MAGIC + b"\xc1",
        Tree.of([file("a")]).encoded[:-1],
        MAGIC + msgspec.msgpack.encode([]),
    ],
)
def test_damaged_encodings(encoded: bytes) -> None:
    with pytest.raises(CorruptedError):
        Tree.decode(encoded)
    with pytest.raises(CorruptedError, match="another hash"):
        Tree.decode(encoded, Tree.of([file("a")]).id)


def test_hard_links_are_numbered_in_order_and_never_alone() -> None:
    tree = Tree.of([file("a", "1", 9), file("b", "2", 4), file("c", "1", 9), file("d", "2", 4)])
    assert [entry.link for entry in tree] == [0, 1, 2, 1, 2]
    assert tree.size == 2
    without = tree.merge(Diff(removed=frozenset({b"c"})))
    assert [(entry.path, entry.link) for entry in without][1:] == [(b"a", 0), (b"b", 1), (b"d", 1)]
    both = tree.merge(Diff([file("x", "3", 1), file("y", "3", 1)]))
    assert [entry.link for entry in both] == [0, 1, 2, 1, 2, 3, 3]


def test_a_directory_over_a_symlink_replaces_it() -> None:
    base = Tree.of([symlink("bin", "usr/bin"), file("usr/bin/sh")])
    assert paths(base.merge(Diff([file("bin/tool")]))) == ["", "bin", "bin/tool", "usr", "usr/bin", "usr/bin/sh"]
    with pytest.raises(InvalidError, match="/bin/tool within a /bin that is no directory"):
        base.merge(Diff([symlink("bin", "usr/bin"), file("bin/tool")]))


def test_select() -> None:
    tree = Tree.of(
        [
            file("a.py"),
            file("b.txt"),
            file("src/c.py"),
            file("src/deep/d.py"),
            symlink("link", "src"),
            file("[x]"),
            file("é"),
        ]
    )

    def found(pattern: str) -> list[str]:
        return [entry.path.decode() for entry in tree.select(pattern)]

    assert found("*.py") == ["a.py"]
    assert found("/./src/*") == ["src/c.py", "src/deep"]
    assert found("**/*.py") == ["a.py", "src/c.py", "src/deep/d.py"]
    assert found("src/**") == ["src", "src/c.py", "src/deep", "src/deep/d.py"]
    assert found("") == found(".") == [""]
    assert found("[!ab]*") == ["[x]", "link", "src", "é"]
    assert found("[^ab]*") == found("[!ab]*")
    assert found("[[]x]") == ["[x]"]
    assert found("?") == ["é"]
    assert found("link/*") == found("nothing") == found("a.py/x") == []


def test_what_is_not_there() -> None:
    tree = Tree.of([file("a")])
    for path in (b"a", b"b"):
        with pytest.raises(NotFoundError, match="no directory /"):
            tree.subtree(path)
        with pytest.raises(NotFoundError, match="no directory /"):
            tree.children(path)


def test_names_for_people() -> None:
    assert shown(b"a/\xff") == "/a/\\xff"
