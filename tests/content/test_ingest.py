"""Directories of the user's: what is taken, what is read again, and what goes wrong."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from farcall.content import Entry, Lease, Store, Tree
from farcall.content.ingest import ingest_directory
from farcall.content.statcache import StatCache
from farcall.errors import ContentError, NotFoundError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> StatCache:
    return StatCache(tmp_path / "cache")


def settle(*files: Path) -> None:
    """Wait until a change of these files would show in their times."""
    while max(file.lstat().st_ctime_ns for file in files) > time.time_ns() - 25_000_000:
        time.sleep(0.005)


def age(directory: Path) -> None:
    settle(directory, *directory.rglob("*"))


class Reads:
    """Which files under a directory are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._real = os.open
        self._directory = os.fsencode(directory)
        self._found: list[str] = []
        monkeypatch.setattr(os, "open", self._open)

    def _open(self, path: str | bytes, *arguments: int, **named: int) -> int:
        if os.fsencode(path).startswith(self._directory):
            self._found.append(os.path.basename(os.fsdecode(path)))
        return self._real(path, *arguments, **named)

    def take(self) -> list[str]:
        found, self._found = sorted(self._found), []
        return found


def content(store: Store, tree: Tree) -> dict[bytes, bytes]:
    return {entry.path: store.read(entry.digest) for entry in tree if entry.is_regular}


def test_everything_a_directory_can_hold(store: Store, lease: Lease, source: Path) -> None:
    (source / "package").mkdir(mode=0o750)
    (source / "package" / "module.py").write_text("x = 1\n")
    (source / "package" / "module.py").chmod(0o640)
    (source / "empty").touch()
    (source / "empty directory").mkdir()
    (source / "absolute").symlink_to("/nowhere/at/all")
    (source / "dangling").symlink_to("../nowhere")
    os.link(source / "package" / "module.py", source / "hard")
    os.mkfifo(source / "fifo")
    socket.socket(socket.AF_UNIX).bind(str(source / "socket"))
    latin = os.fsencode(source) + b"/caf\xe9"
    with open(latin, "wb") as stream:
        stream.write(b"latin")
    os.utime(source / "package" / "module.py", ns=(0, 1_234_567_890_123_456_789))
    os.utime(source / "empty", ns=(0, -5_000_000_000))

    tree = store.tree(ingest_directory(lease, source))
    kinds = {entry.path: (stat.S_IFMT(entry.mode), stat.S_IMODE(entry.mode)) for entry in tree}
    module = tree.get(b"package/module.py")
    assert module is not None
    assert (module.mtime_ns, module.size, module.uid, module.gid) == (1_234_567_890_123_456_789, 6, 0, 0)
    assert kinds[b"package"] == (stat.S_IFDIR, 0o750) and kinds[b"empty directory"][0] == stat.S_IFDIR
    assert kinds[b"fifo"][0] == stat.S_IFIFO and kinds[b"socket"][0] == stat.S_IFSOCK
    links = {entry.path: entry.target for entry in tree if entry.is_symlink}
    assert links == {b"absolute": b"/nowhere/at/all", b"dangling": b"../nowhere"}
    assert [entry.path for entry in tree if entry.link == 1] == [b"hard", b"package/module.py"]
    assert (empty := tree.get(b"empty")) is not None and (empty.mtime_ns, empty.digest) == (-5_000_000_000, b"")
    assert content(store, tree) == {
        b"caf\xe9": b"latin",
        b"empty": b"",
        b"hard": b"x = 1\n",
        b"package/module.py": b"x = 1\n",
    }
    assert ingest_directory(lease, os.fsencode(source)) == tree.id
    assert {entry.uid for entry in store.tree(ingest_directory(lease, source, uid=7, gid=8))} == {7}


def test_owners_and_attributes_are_kept_on_request(store: Store, lease: Lease, source: Path) -> None:
    file = source / "file"
    file.touch()
    os.setxattr(file, "user.note", b"\0value")
    tree = store.tree(ingest_directory(lease, source))
    assert tree.get(b"file") == Entry(b"file", file.stat().st_mode, mtime_ns=file.stat().st_mtime_ns)
    kept = store.tree(ingest_directory(lease, source, keep_owner=True)).get(b"file")
    assert kept is not None
    assert (kept.uid, kept.gid, kept.xattrs) == (os.getuid(), os.getgid(), ((b"user.note", b"\0value"),))


def test_objects_take_mode_and_time_of_files_that_everybody_may_read(store: Store, lease: Lease, source: Path) -> None:
    for name, mode in {"plain": 0o644, "program": 0o755, "private": 0o600, "setuid": 0o4755}.items():
        (source / name).write_text(name)
        (source / name).chmod(mode)
        os.utime(source / name, ns=(0, 10**18))
    tree = store.tree(ingest_directory(lease, source))
    found = {entry.path: store.path_of(entry.digest).stat() for entry in tree if entry.is_regular}
    inodes = {path: (stat.S_IMODE(status.st_mode), status.st_mtime_ns) for path, status in found.items()}
    assert inodes == {
        b"plain": (0o644, 10**18),
        b"program": (0o755, 10**18),
        b"private": (0o444, 0),
        b"setuid": (0o444, 0),
    }


@pytest.mark.parametrize("prune", [True, False])
def test_what_is_ignored(store: Store, lease: Lease, source: Path, prune: bool) -> None:
    for name in ("a.py", "b.pyc", "cache/kept.py", "cache/x.pyc", "deep/cache/y.pyc"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    asked: list[str] = []

    def ignore(path: str) -> bool:
        asked.append(path)
        return not path.endswith("kept.py") and ("cache" in path or path.endswith(".pyc"))

    tree = store.tree(ingest_directory(lease, source, ignore=ignore, prune=prune))
    paths = [entry.path.decode() for entry in tree]
    if prune:
        assert paths == ["", "a.py", "deep"]
        assert sorted(asked) == ["a.py", "b.pyc", "cache", "deep", "deep/cache"]
    else:
        assert paths == ["", "a.py", "cache", "cache/kept.py", "deep"]


def test_only_changed_files_are_read(
    store: Store, lease: Lease, source: Path, cache: StatCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (source / f"{number}.py").write_text(f"x = {number}\n")
    (source / "link").symlink_to("0.py")
    age(source)
    reads = Reads(monkeypatch, source)
    first = ingest_directory(lease, source, cache=cache)
    assert len(reads.take()) == 20
    assert ingest_directory(lease, source, cache=cache) == first
    assert reads.take() == []

    status = (source / "3.py").stat()
    (source / "3.py").write_text("x = 9\n")
    os.utime(source / "3.py", ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time: ctime tells
    (source / "new.py").write_text("y = 0\n")
    (source / "4.py").unlink()
    age(source)
    second = ingest_directory(lease, source, cache=cache)
    assert reads.take() == ["3.py", "new.py"]
    files = content(store, store.tree(second))
    assert (files[b"3.py"], files[b"new.py"], len(files)) == (b"x = 9\n", b"y = 0\n", 20)
    assert b"4.py" not in files
    with Store(store.root).lease("another") as another:
        assert ingest_directory(another, source, cache=cache) == second
    assert reads.take() == []
    assert ingest_directory(lease, source, cache=cache, uid=5) != second
    assert len(reads.take()) == 20, "another owner is another tree, remembered apart"


def test_a_file_changed_just_now_is_read_again(
    lease: Lease, source: Path, cache: StatCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "old.py").write_text("x = 1\n")
    age(source)
    (source / "new.py").write_text("x = 1\n")
    reads = Reads(monkeypatch, source)
    ingest_directory(lease, source, cache=cache)
    ingest_directory(lease, source, cache=cache)
    assert reads.take().count("old.py") == 1


@pytest.mark.parametrize("lost", ["object", "tree", "both", "cache"])
def test_what_the_cache_names_and_the_store_has_lost_is_read_again(
    store: Store, source: Path, cache: StatCache, tmp_path: Path, lost: str
) -> None:
    for name in ("a", "b"):
        (source / name).write_text(name * 100)
    age(source)
    with store.lease("first") as lease:
        tree_id = ingest_directory(lease, source, cache=cache)
    entry = store.tree(tree_id).get(b"a")
    assert entry is not None
    if lost != "cache":
        store.tree_path(tree_id).unlink()  # a collection takes a tree before its objects
    if lost in ("object", "both"):
        store.path_of(entry.digest).unlink()
    if lost == "cache":
        [file] = (tmp_path / "cache").iterdir()
        os.truncate(file, file.stat().st_size - 1)
    with store.lease("second") as lease:
        assert ingest_directory(lease, source, cache=cache) == tree_id
    assert content(store, store.tree(tree_id)) == {b"a": b"a" * 100, b"b": b"b" * 100}


def test_what_vanishes_meanwhile_is_left_out(
    store: Store, lease: Lease, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dir/inner", "file", "kept"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    real_scandir, real_open = os.scandir, os.open

    def scandir(path: bytes) -> object:
        if path == os.fsencode(source / "dir"):
            (source / "dir" / "inner").unlink()
            (source / "dir").rmdir()
        return real_scandir(path)

    def open_(path: str | bytes, *arguments: int, **named: int) -> int:
        if path == os.fsencode(source / "file"):
            (source / "file").unlink()
        return real_open(path, *arguments, **named)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "open", open_)
    tree = store.tree(ingest_directory(lease, source))
    assert [entry.path for entry in tree] == [b"", b"kept"]


def test_what_cannot_be_taken(lease: Lease, source: Path) -> None:
    with pytest.raises(NotFoundError, match=f"{source}/nowhere does not exist"):
        ingest_directory(lease, source / "nowhere")
    (source / "file").touch()
    with pytest.raises(ContentError, match=f"{source}/file is no directory"):
        ingest_directory(lease, source / "file")


@pytest.mark.root("makes a device")
def test_a_device(lease: Lease, source: Path) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with pytest.raises(ContentError, match=f"{source}/null is a device"):
        ingest_directory(lease, source)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_may_not_be_read_is_named(what: str) -> None:
    """As an ordinary user: root may read everything."""
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/tmp") as root:
        refused(Path(root), what)


def refused(root: Path, what: str) -> None:
    root.chmod(0o755)
    secret = root / "source" / "secret"
    secret.parent.mkdir()
    if what == "file":
        secret.touch()
    else:
        secret.mkdir()
    program = (
        "import os, sys; from pathlib import Path; from farcall import errors; from farcall.content import Store\n"
        "from farcall.content.ingest import ingest_directory\n"
        "with Store(Path(sys.argv[1])).lease('x') as lease:\n"
        "    if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "    try: ingest_directory(lease, sys.argv[2])\n"
        "    except errors.PermissionDeniedError as error: print(error)\n"
    )
    secret.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", program, root / "store", secret.parent], capture_output=True, text=True, check=True
    )
    assert f"may not go on reading {secret}: Permission denied" in done.stdout


def test_a_sparse_file_of_5_gib(store: Store, lease: Lease, source: Path) -> None:
    with (source / "huge").open("wb") as stream:
        stream.truncate(5 * 2**30)
        stream.seek(3 * 2**30)
        stream.write(b"here")
    tree = store.tree(ingest_directory(lease, source))
    entry = tree.get(b"huge")
    assert entry is not None and entry.size == tree.size == 5 * 2**30
    status = store.path_of(entry.digest).stat()
    assert status.st_size == 5 * 2**30 and status.st_blocks * 512 < 2**20
    with store.path_of(entry.digest).open("rb") as stream:
        stream.seek(3 * 2**30 - 1)
        assert stream.read(6) == b"\0here\0"
