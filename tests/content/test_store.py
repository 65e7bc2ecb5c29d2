import hashlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from farcall.content import Entry, Lease, Store, Tree
from farcall.errors import ContentError, CorruptedError, InvalidError, NotFoundError

FILE = stat.S_IFREG | 0o644


def entry(path: str, data: bytes) -> Entry:
    return Entry(path.encode(), FILE, size=len(data), digest=hashlib.sha256(data).digest() if data else b"")


def in_incoming(store: Store) -> list[Path]:
    return [path for path in (store.root / "incoming").rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [1, 128 * 1024, 128 * 1024 + 1, 3_000_001])
def test_what_is_added_is_found_by_its_hash(store: Store, lease: Lease, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    digest = hashlib.sha256(data).digest()
    (tmp_path / "file").write_bytes(data)
    assert not store.has(digest)
    assert lease.add_file(tmp_path / "file") == (digest, size)
    first = store.path_of(digest).stat()
    assert lease.add_bytes(data) == digest
    assert lease.add_stream(io.BytesIO(data)) == (digest, size)
    assert lease.add_file(os.fsencode(tmp_path / "file")) == (digest, size)
    assert store.has(digest) and store.read(digest) == data
    assert store.path_of(digest) == store.root / "objects" / digest.hex()[:2] / digest.hex()[2:]
    assert store.path_of(digest).stat().st_ctime_ns == first.st_ctime_ns, "content that is there is not written again"
    assert stat.S_IMODE(first.st_mode) == 0o444
    assert in_incoming(store) == []
    assert (tmp_path / "file").read_bytes() == data


def test_nothing_is_stored_of_nothing(store: Store, lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert lease.add_bytes(b"") == b"" and lease.add_stream(io.BytesIO()) == (b"", 0)
    assert lease.add_file(tmp_path / "empty") == lease.add_file(tmp_path / "empty", move=True) == (b"", 0)
    assert store.has(b"") and store.read(b"") == b"" and store.statistics().objects == 0
    assert in_incoming(store) == []


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_moved_file_becomes_the_object(store: Store, lease: Lease, tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(data := os.urandom(size))
    os.setxattr(file, "user.note", b"x")
    inode = file.stat().st_ino
    digest, added = lease.add_file(file, move=True, mode=0o755, mtime_ns=10**18)
    assert (digest, added) == (hashlib.sha256(data).digest(), size)
    found = store.path_of(digest).stat()
    assert (found.st_ino, found.st_mode & 0o7777, found.st_mtime_ns) == (inode, 0o755, 10**18)
    assert os.listxattr(store.path_of(digest)) == []
    assert store.read(digest) == data


def test_an_object_cut_short_is_replaced_by_the_next_that_adds_it(store: Store, lease: Lease) -> None:
    data = os.urandom(1000)
    digest = lease.add_bytes(data)
    store.path_of(digest).chmod(0o600)
    os.truncate(store.path_of(digest), 500)
    with pytest.raises(CorruptedError, match=digest.hex()):
        store.read(digest)
    with store.lease("again") as another:
        another.add_bytes(data)
    assert store.read(digest) == data


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no object 0000"):
        store.read(bytes(32))
    with pytest.raises(NotFoundError, match="no tree 0000"):
        store.tree("0" * 64)
    with pytest.raises(InvalidError, match="32 bytes"):
        store.path_of(b"short")
    with pytest.raises(InvalidError, match="no tree id"):
        store.tree("../../etc/passwd")


def test_trees(store: Store, lease: Lease) -> None:
    lease.add_bytes(b"one")
    tree = Tree.of([entry("a/b", b"one"), entry("empty", b"")])
    assert lease.add_tree(tree) == lease.add_tree([entry("empty", b""), entry("a/b", b"one")]) == tree.id
    assert store.tree(tree.id) == tree
    with pytest.raises(NotFoundError, match=r"1 objects of a tree are not in .* at /c"):
        lease.add_tree([entry("a", b"one"), entry("c", b"two")])
    file = store.tree_path(tree.id)
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CorruptedError, match="another hash"):
        store.tree(tree.id)


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "device"])
def test_what_is_no_file_is_refused_at_once(lease: Lease, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(tmp_path)
    else:
        path = Path("/dev/null")
    with pytest.raises(ContentError, match=f"{path} is no regular file"):
        lease.add_file(path)


def test_a_file_that_changes_while_it_is_read(
    store: Store, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer between our reading and our second look, first once, then always."""
    file = tmp_path / "file"
    file.write_bytes(b"0" * 10)
    real = os.pread
    writes = 0
    limit = 1

    def pread(fd: int, count: int, offset: int) -> bytes:
        nonlocal writes
        data = real(fd, count, offset)
        if writes < limit:
            writes += 1
            file.write_bytes(str(writes).encode() * 10)
        return data

    monkeypatch.setattr(os, "pread", pread)
    digest, size = lease.add_file(file)
    assert (store.read(digest), size) == (b"1" * 10, 10)
    limit = 100
    with pytest.raises(ContentError, match=f"{file} changed while it was read, 4 times"):
        lease.add_file(file)
    assert in_incoming(store) == []


def test_a_sparse_file_stays_sparse(store: Store, lease: Lease, tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.seek(30 * 1024 * 1024)
        stream.write(b"middle")
        stream.truncate(100 * 1024 * 1024)
    digest, size = lease.add_file(file)
    assert size == 100 * 1024 * 1024
    assert store.path_of(digest).stat().st_blocks * 512 < 1024 * 1024
    assert store.read(digest) == file.read_bytes()


def test_records(store: Store, lease: Lease) -> None:
    tree_id = lease.add_tree([])
    assert store.record("images", "im-1") is None
    put = store.put_record("images", "im-1", trees=[tree_id], data={"config": {"env": ["é"]}})
    found = store.record("images", "im-1")
    assert found is not None and (found.trees, found.data, found.pinned) == ((tree_id,), put.data, False)
    store.put_record("steps", "k", pinned=True)
    os.utime(store.root / "records" / "images" / "im-1", (0, 0))
    assert [record.key for record in store.records()] == ["im-1", "k"]
    store.record("images", "im-1")
    assert [record.key for record in store.records()] == ["k", "im-1"], "asking is using"
    assert [record.kind for record in store.records("steps")] == ["steps"]
    assert store.delete_record("images", "im-1") and not store.delete_record("images", "im-1")
    with pytest.raises(NotFoundError, match="images im-2 cannot keep the tree 0000"):
        store.put_record("images", "im-2", trees=["0" * 64])
    with pytest.raises(InvalidError, match="cannot name a record"):
        store.put_record("images", "../../x")
    (store.root / "records" / "steps" / "k").write_text("{")
    with pytest.raises(CorruptedError, match="steps/k cannot be read"):
        store.record("steps", "k")


def test_a_lease_is_one_until_the_last_holder_lets_go(store: Store) -> None:
    lease = store.lease("build")
    file = store.root / "leases" / lease.id
    joined = Store(store.root).join_lease(lease.id)
    lease.close()
    assert file.exists()
    joined.add_bytes(b"x")
    joined.close()
    assert not file.exists() and not (store.root / "incoming" / lease.id).exists()
    with pytest.raises(NotFoundError, match=f"{lease.id} of .* has ended"):
        store.join_lease(lease.id)
    with pytest.raises(InvalidError, match="has ended"):
        lease.add_bytes(b"y")


def test_two_processes_add_the_same(store: Store, lease: Lease) -> None:
    program = (
        "import sys; from pathlib import Path; from farcall.content import Store\n"
        "with Store(Path(sys.argv[1])).lease('other') as lease:\n"
        "    for number in range(300): lease.add_bytes(b'%d' % number * 100)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, store.root])
    digests = [lease.add_bytes(b"%d" % number * 100) for number in range(300)]
    assert other.wait(30) == 0
    for number, digest in enumerate(digests):
        assert store.read(digest) == b"%d" % number * 100
    assert store.statistics().objects == 300 and store.statistics().leases == 1
