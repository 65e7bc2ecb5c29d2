"""EROFS images of trees, as the kernel shows them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farcall.content.store import Store
from farcall.content.tree import Entry, Tree
from farcall.mounts.erofs import image_of

pytestmark = [
    pytest.mark.root("it mounts file systems"),
    pytest.mark.kernel("erofs", "trees are mounted with it"),
]

DIRECTORY, FILE, LINK = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK | 0o777

# Mounts the image over the objects, and prints what is there.
_SHOW = """
import os, sys
meta, objects, place = sys.argv[1:4]
os.chdir(place)
for name in ("lower", "merged"):
    os.mkdir(name)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, data):
    if libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
mount(meta, "lower", "erofs", 1, "")
mount("overlay", "merged", "overlay", 1, f"lowerdir=lower::{objects},metacopy=on,redirect_dir=on")
inodes = {}
def show(path):
    found = os.lstat(b"merged/" + path)
    full = b"merged/" + path
    data = b""
    if (found.st_mode & 0o170000) == 0o100000:
        with open(full, "rb") as file:
            data = file.read(100)
    target = os.readlink(full) if (found.st_mode & 0o170000) == 0o120000 else b""
    listed = os.listxattr(full, follow_symlinks=False)
    attributes = sorted((name, os.getxattr(full, name, follow_symlinks=False)) for name in listed)
    inode = inodes.setdefault(found.st_ino, len(inodes)) if found.st_nlink > 1 and not os.path.isdir(full) else -1
    size = found.st_size if (found.st_mode & 0o170000) == 0o100000 else 0
    row = path, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, size, data, target
    print(repr((*row, attributes, found.st_nlink, inode)))
    if (found.st_mode & 0o170000) == 0o040000:
        for name in sorted(os.listdir(full)):
            show(path + b"/" + name if path else name)
show(b"")
"""


def shown(store: Store, tree: Tree, place: Path) -> list[tuple[object, ...]]:
    """What the kernel shows of a tree."""
    import tempfile

    place = Path(tempfile.mkdtemp(dir=place))
    image = place / "image"
    image.write_bytes(image_of(tree))
    completed = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", _SHOW, str(image), str(store.objects), str(place)],
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return [eval(line) for line in completed.stdout.splitlines()]


def expected(store: Store, tree: Tree) -> list[tuple[object, ...]]:
    """The same by the tree itself."""
    inodes: dict[int, int] = {}
    links: dict[int, int] = {}
    for entry in tree:
        if entry.link:
            links[entry.link] = links.get(entry.link, 0) + 1
    rows: list[tuple[object, ...]] = []

    def show(entry: Entry) -> None:
        children = tree.children(entry.path) if entry.is_directory else []
        data = store.read(entry.digest)[:100] if entry.size else b""
        count = 2 + sum(child.is_directory for child in children) if entry.is_directory else links.get(entry.link, 1)
        inode = inodes.setdefault(entry.link, len(inodes)) if entry.link else -1
        attributes = [(name.decode(errors="surrogateescape"), value) for name, value in entry.xattrs]
        row = entry.path, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, data, entry.target
        rows.append((*row, attributes, count, inode))
        for child in sorted(children, key=lambda child: child.name):
            show(child)

    show(tree.entries[0])
    return rows


def without_directory_links(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """overlayfs counts no subdirectories."""
    return [(*row[:9], 0, row[10]) if stat.S_ISDIR(row[1]) else row for row in rows]  # type: ignore[arg-type]


def check(store: Store, tree: Tree, place: Path) -> None:
    assert without_directory_links(shown(store, tree, place)) == without_directory_links(expected(store, tree))


def test_all_kinds_of_entries(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.lease("test") as lease:
        content = lease.add_bytes(b"content")
        large = lease.add_bytes(bytes(range(256)) * 40)
        entries = [
            Entry(b"", DIRECTORY | 0o751, 3, 4, 5_000_000_006),
            Entry(b"empty", FILE | 0o644),
            Entry(b"file", FILE | 0o4755, 70_000, 80_000, 1_700_000_000_123_456_789, 7, content),
            Entry(b"large", FILE | 0o600, 0, 0, -1_500_000_000, 10240, large),
            Entry(b"one", FILE | 0o644, size=7, digest=content, link=1),
            Entry(b"other", FILE | 0o644, size=7, digest=content, link=1),
            Entry(b"fifo", stat.S_IFIFO | 0o622),
            Entry(b"socket", stat.S_IFSOCK | 0o622),
            Entry(b"link", LINK, target=b"/somewhere/else"),
            Entry(b"long", LINK, target=b"x/" * 2000 + b"x"),
            Entry(b"not \xff utf-8", DIRECTORY | 0o1777),
            Entry(b"not \xff utf-8/\xfe", FILE | 0o644, size=7, digest=content),
            Entry(b"with", FILE | 0o644, size=7, digest=content, xattrs=((b"user.color", b"blue"), (b"user.x", b""))),
            Entry(b"-before the dot", FILE | 0o644),
            Entry(b"!", DIRECTORY | 0o755),
        ]
        tree = Tree.of(entries)
        lease.add_tree(tree)
        check(store, tree, tmp_path)
        assert image_of(tree) == image_of(Tree.decode(tree.encoded))


@pytest.mark.parametrize("count", [1, 200, 330, 3000])
def test_directories_of_all_sizes(tmp_path: Path, count: int) -> None:
    store = Store(tmp_path / "store")
    with store.lease("test") as lease:
        content = lease.add_bytes(b"content")
        names = [b"%s-%d" % (b"n" * (number % 40), number) for number in range(count)]
        tree = Tree.of(Entry(b"d/" + name, FILE | 0o644, size=7, digest=content) for name in names)
        lease.add_tree(tree)
        check(store, tree, tmp_path)


def test_a_file_larger_than_the_image(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    huge = 5 * 2**30
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(huge)
    # Hashing five GiB of zeros takes a while: what stands for the object is put there by hand.
    digest = bytes(32)
    os.rename(sparse, store.object_path(digest))
    tree = Tree.of([Entry(b"huge", FILE | 0o644, size=huge, digest=digest)])
    assert [row[5] for row in shown(store, tree, tmp_path) if row[0] == b"huge"] == [huge]


names = st.binary(min_size=1, max_size=60).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("any")
    store = Store(place / "store")
    with store.lease("test") as lease:
        folders = [b"", *data.draw(st.lists(names, max_size=6, unique=True))]
        folders += [folder + b"/" + data.draw(names) for folder in folders[1:]]
        entries = {folder: Entry(folder, DIRECTORY | data.draw(st.integers(0, 0o1777))) for folder in folders}
        for _ in range(data.draw(st.integers(0, 30))):
            folder = data.draw(st.sampled_from(folders))
            path = folder + b"/" + data.draw(names) if folder else data.draw(names)
            if path in entries:
                continue
            ids = data.draw(st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2)))
            mtime = data.draw(st.integers(-(2**32), 2**32)) * 1_000_000_000 + data.draw(st.integers(0, 999_999_999))
            if data.draw(st.booleans()):
                target = data.draw(st.binary(min_size=1, max_size=300).filter(lambda value: 0 not in value))
                entries[path] = Entry(path, LINK, *ids, mtime, target=target)
            else:
                content = data.draw(st.binary(max_size=50))
                digest = lease.add_bytes(content) if content else b""
                mode = FILE | data.draw(st.integers(0, 0o777))
                entries[path] = Entry(path, mode, *ids, mtime, len(content), digest)
        tree = Tree.of(entries.values())
        lease.add_tree(tree)
        check(store, tree, place)
