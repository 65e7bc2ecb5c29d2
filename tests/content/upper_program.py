"""Changes a real overlay at random and compares what was seen in it with what its upper directory becomes.

Runs in a mount namespace of its own: a work directory, what kind of overlay, a seed. The kinds: "trusted" and "user"
for overlayfs's attributes, "metacopy" for one with copies without data and renamed directories, which some kernels
require above a data-only layer.
"""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from farcall.content import Store
from farcall.content.ingest import ingest_directory
from farcall.content.upper import ingest_upper

NAMES = ["a", "b", "c", "a-b", "\udcff", ".wh.x"]
ACTIONS = ["append", "attribute", "chmod", "chown", "directory", "fifo", "file", "link", "remove", "remove", "rename"]
ACTIONS += ["chmod", "replace", "symlink", "time"]
# What a file system refuses: a name that is taken, a directory into itself, renaming a lower directory, writing to a
# symlink, a FIFO that nobody reads.
REFUSED = {errno.EEXIST, errno.EXDEV, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.EPERM}
REFUSED |= {errno.ELOOP, errno.ENXIO}


def is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def is_no_symlink(path: Path) -> bool:
    return not path.is_symlink()


def write(path: Path, data: bytes) -> None:
    """Never through a symlink: one that leads out of the test would let it write anywhere."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    with open(fd, "wb") as stream:
        stream.write(data)


def remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", path], check=True)


def change(root: Path, rng: random.Random, may_chown: bool) -> None:
    """One change below `root`, or none where what was drawn cannot be done."""

    def anything(kind: Callable[[Path], bool]) -> Path | None:
        found = sorted(path for path in root.rglob("*") if kind(path))
        return rng.choice(found) if found else None

    directory = rng.choice(sorted(path for path in [root, *root.rglob("*")] if is_directory(path)))
    new = directory / rng.choice(NAMES)
    action = rng.choice(ACTIONS)
    try:
        if action == "file":
            write(new, rng.choice([b"", b"same", rng.randbytes(10), rng.randbytes(200_000)]))
        elif action == "directory":
            new.mkdir()
        elif action == "symlink":
            new.symlink_to(rng.choice(["a", "../b", "/nowhere"]))
        elif action == "fifo":
            os.mkfifo(new)
        elif action == "link" and (path := anything(is_file)):
            os.link(path, new)
        elif action == "remove" and (path := anything(os.path.lexists)):
            remove(path)
        elif action == "replace" and (path := anything(os.path.lexists)):  # directories become opaque by this
            remove(path)
            if rng.random() < 0.7:
                path.mkdir()
                write(path / rng.choice(NAMES), b"inside")
            else:
                write(path, b"instead")
        elif action == "chmod" and (path := anything(is_no_symlink)):
            path.chmod(rng.choice([0o755, 0o644, 0o600, 0o4711, 0o1777]))
        elif action == "append" and (path := anything(is_file)):
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), "ab") as stream:
                stream.write(b"more")
        elif action == "rename" and (path := anything(os.path.lexists)):
            os.rename(path, new)
        elif action == "chown" and may_chown and (path := anything(os.path.lexists)):
            os.lchown(path, rng.randrange(3), rng.randrange(3))
        elif action == "attribute" and (path := anything(is_file)):
            os.setxattr(path, "user.note", rng.randbytes(3))
        elif action == "time" and (path := anything(os.path.lexists)):
            os.utime(path, ns=(0, rng.randrange(2**60)), follow_symlinks=False)
    except OSError as error:
        if error.errno not in REFUSED:
            raise


def main() -> None:
    work, kind, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", work], check=True)
    lower, upper, inner, merged = (work / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, inner, merged):
        directory.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={inner},"
    options += {
        "trusted": "redirect_dir=off,metacopy=off",
        "metacopy": "redirect_dir=on,metacopy=on",
        "user": "userxattr",
    }[kind]
    with Store(work / "store").lease("test") as lease:
        for _ in range(40):
            change(lower, rng, kind != "user")
        base = lease.store.tree(ingest_directory(lease, lower, keep_owner=True))
        for _ in range(2):  # the second time the upper directory is not empty: its whiteouts stay in force
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
            for _ in range(25):
                change(merged, rng, kind != "user")
            os.chmod(merged, rng.choice([0o755, 0o1711]))
            if kind != "user":
                os.chown(merged, rng.randrange(3), rng.randrange(3))
            # A new tree's root has the time of the base's.
            os.utime(merged, ns=(0, base.entries[0].mtime_ns))
            seen = lease.store.tree(ingest_directory(lease, merged, keep_owner=True))
            subprocess.run(["umount", merged], check=True)
        made = ingest_upper(lease, upper, base)
        assert lease.store.tree(made.id) == made
        for one, other in zip(seen, made, strict=True):
            assert one == other, (one, other)
    print("held")


if __name__ == "__main__":
    main()
