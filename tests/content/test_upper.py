"""Real overlays, changed at random: what was seen in them is what comes out of their upper directories."""

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from farcall.content import Lease, Store, Tree
from farcall.content.scan import as_in_trees
from farcall.content.upper import OVERFLOW_ID, ingest_upper
from farcall.errors import ContentError

PROGRAM = Path(__file__).with_name("upper_program.py")


@pytest.mark.kernel("overlay", "these tests mount one")
@pytest.mark.parametrize("user", ["root", "user namespace"])
def test_what_was_seen_is_what_comes_out(tmp_path: Path, rng: random.Random, user: str) -> None:
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs host root: attributes of the kind trusted.")
    namespaces = ["unshare", "--mount"] if user == "root" else ["unshare", "--user", "--map-root-user", "--mount"]
    attributes = "trusted" if user == "root" else "user"
    for _ in range(4):
        done = subprocess.run(
            [*namespaces, sys.executable, PROGRAM, tmp_path, attributes, str(rng.randrange(2**31))],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "Operation not permitted" in done.stderr and user != "root":
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
    owners = {(entry.uid, entry.gid) for entry in made.entries[1:]}
    assert owners == {(5, OVERFLOW_ID)}
    assert [entry.mtime_ns - 10**18 for entry in made.entries[1:]] == [1, 0, 1]
    assert made.entries[0].uid == 0
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


@pytest.mark.parametrize("attribute", ["user.overlay.redirect", "user.overlay.metacopy"])
def test_what_is_elsewhere_is_refused(lease: Lease, tmp_path: Path, attribute: str) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "file").touch()
    os.setxattr(tmp_path / "upper" / "file", attribute, b"x")
    with pytest.raises(ContentError, match=f"upper/file has the attribute {attribute}"):
        ingest_upper(lease, tmp_path / "upper", Tree.of([]))


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
