"""Real overlays, changed at random: what was seen in them is what comes out of their upper directories."""

import os
import random
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from farcall.content import Entry, Lease, Store, Tree
from farcall.content.scan import as_in_trees
from farcall.content.upper import OVERFLOW_ID, ingest_upper
from farcall.errors import ContentError

PROGRAM = Path(__file__).with_name("upper_program.py")


@pytest.mark.kernel("overlay", "these tests mount one")
@pytest.mark.parametrize("kind", ["trusted", "metacopy", "user"])
def test_what_was_seen_is_what_comes_out(tmp_path: Path, rng: random.Random, kind: str) -> None:
    if kind != "user" and os.geteuid() != 0:
        pytest.skip("needs host root: attributes of the kind trusted.")
    namespaces = ["unshare", "--mount"] if kind != "user" else ["unshare", "--user", "--map-root-user", "--mount"]
    for _ in range(4):
        done = subprocess.run(
            [*namespaces, sys.executable, PROGRAM, tmp_path, kind, str(rng.randrange(2**31))],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "Operation not permitted" in done.stderr and kind == "user":
            pytest.skip("needs a user namespace that may mount an overlay")
        assert done.stdout == "held\n", done.stderr


def test_owners_and_times_are_those_inside(store: Store, lease: Lease, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    for number, name in enumerate(("root", "user", "nobody's")):
        (upper / name).write_text(name)
        os.utime(upper / name, ns=(0, 10**18 + number))
    me, group = os.getuid(), os.getgid()
    made = ingest_upper(
        lease, upper, Tree.of([]), uid_map=[(5, me, 1)], gid_map=[(0, group + 1, 9)], clamp_mtime_after=10**18 + 1
    )
    owners = {(entry.uid, entry.gid) for entry in made}
    assert owners == {(5, OVERFLOW_ID)}
    assert [entry.mtime_ns - 10**18 for entry in made.entries[1:]] == [1, 0, 1]
    entry = made.get(b"user")
    assert entry is not None and store.read(entry.digest) == b"user"


def test_files_are_moved(store: Store, lease: Lease, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "one").write_bytes(b"1" * 500_000)
    os.link(upper / "one", upper / "two")
    inode = (upper / "one").stat().st_ino
    made = ingest_upper(lease, upper, Tree.of([]))
    assert [(entry.path, entry.link) for entry in made][1:] == [(b"one", 1), (b"two", 1)]
    assert store.path_of(made.entries[1].digest).stat().st_ino == inode


@pytest.mark.root("sets trusted. attributes")
@pytest.mark.parametrize("redirect", [None, b"/elsewhere", b"other"])
def test_a_copy_without_data_of_nothing_is_refused(lease: Lease, tmp_path: Path, redirect: bytes | None) -> None:
    file = tmp_path / "upper" / "dir" / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    os.truncate(file, 10)
    os.setxattr(file, "trusted.overlay.metacopy", b"")
    if redirect is not None:
        os.setxattr(file, "trusted.overlay.redirect", redirect)
    path = {None: "/dir/file", b"/elsewhere": "/elsewhere", b"other": "/dir/other"}[redirect]
    with pytest.raises(ContentError, match=f"dir/file is made of {path}, which the tree"):
        ingest_upper(lease, tmp_path / "upper", Tree.of([]))


@pytest.mark.root("is not within a user namespace")
def test_attributes_that_a_container_may_set_mean_nothing(lease: Lease, tmp_path: Path) -> None:
    base = Tree.of([Entry(b"dir/below", stat.S_IFREG | 0o644)])
    (tmp_path / "upper" / "dir").mkdir(parents=True)
    (tmp_path / "upper" / "dir" / "file").touch()
    os.setxattr(tmp_path / "upper" / "dir", "user.overlay.opaque", b"y")
    os.setxattr(tmp_path / "upper" / "dir" / "file", "user.overlay.metacopy", b"")
    made = ingest_upper(lease, tmp_path / "upper", base)
    assert [entry.path for entry in made] == [b"", b"dir", b"dir/below", b"dir/file"]
    assert {entry.xattrs for entry in made} == {()}


def test_ids_within_attributes_are_those_inside() -> None:
    def inside(outside: int) -> int:
        return outside - 100_000

    # linux/capability.h: revision 3 is revision 2 with the id of the root user it holds for
    revision_3 = bytes.fromhex("0100000300040000000000000000000000000000") + (100_000).to_bytes(4, "little")
    assert as_in_trees(b"security.capability", revision_3, inside, inside) == bytes.fromhex(
        "0100000200040000000000000000000000000000"
    )
    entry = struct.Struct("<HHI")
    acl = b"\2\0\0\0" + entry.pack(1, 6, 2**32 - 1) + entry.pack(2, 4, 100_007) + entry.pack(8, 4, 100_008)
    shifted = b"\2\0\0\0" + entry.pack(1, 6, 2**32 - 1) + entry.pack(2, 4, 7) + entry.pack(8, 4, 8)
    assert as_in_trees(b"system.posix_acl_access", acl, inside, inside) == shifted
