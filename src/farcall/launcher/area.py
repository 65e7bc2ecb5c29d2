"""A container's writable area: the directory on disk that becomes its root file system, before anything is mounted.

Made ahead of need where there is time (see areas.py), or by what becomes pid 1: creating files waits for the disk's
journal, a dozen milliseconds when others write much.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable

# Directories of the host's system that a container sees, read-only. Where /bin and its kind are symlinks (merged /usr)
# the symlink is made again.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Files of /etc that are a container's own: symlinks to a tmpfs, so that an area is the same for all.
OWN_FILES = ("hostname", "hosts", "resolv.conf")

_DIRECTORIES = (
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
)
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nservices: files\n",
}

Owner = tuple[int, int]  # host uid and gid of the container's root


def make_skeleton(root: str, owner: Owner) -> None:
    """Fill the empty directory `root` with what every container's root has. Changes nothing but below it."""
    mask = os.umask(0)
    os.chown(root, *owner)
    for name, mode in _DIRECTORIES:
        os.mkdir(f"{root}/{name}", mode)
        os.chown(f"{root}/{name}", *owner)
    links = [(os.readlink(path), path[1:]) for path in SYSTEM if os.path.islink(path)]
    links += [("../run", "var/run"), ("../run/lock", "var/lock"), ("../proc/self/mounts", "etc/mtab")]
    links += [(f"../run/farcall/{name}", f"etc/{name}") for name in OWN_FILES]
    for target, name in links:
        os.symlink(target, f"{root}/{name}")
        os.lchown(f"{root}/{name}", *owner)
    for name, content in _ETC.items():
        fd = os.open(f"{root}/etc/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.write(fd, content.encode())
        os.fchown(fd, *owner)
        os.close(fd)
    os.umask(mask)


def make_layer(directory: str) -> None:
    """Fill the directory with what an overlay needs for the layer that is written: an empty one, and no work left."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{directory}/upper", 0o755)
    try:
        os.mkdir(f"{directory}/work", 0o700)
    except FileExistsError:  # of another container with this layer
        shutil.rmtree(f"{directory}/work")
        os.mkdir(f"{directory}/work", 0o700)


def make_mount_points(root: str, binds: Iterable[tuple[str, str]], owner: Owner) -> None:
    """Create the targets of binds (source, target) as far as nothing is in the way; what is missing is made later."""
    for source, target in binds:
        with contextlib.suppress(OSError):
            if not _leads_out(root, target):
                make_mount_point(root + target, os.path.isdir(source), owner)


def _leads_out(root: str, target: str) -> bool:
    """A symlink is on the way: from out here it could lead anywhere."""
    path = root
    for part in target.strip("/").split("/"):
        path += "/" + part
        try:
            if part == ".." or stat.S_ISLNK(os.lstat(path).st_mode):
                return True
        except FileNotFoundError:
            return ".." in target.split("/")
    return False


def make_mount_point(path: str, is_directory: bool, owner: Owner) -> None:
    """Create a directory or an empty file, with all directories above it, unless it exists."""
    if os.path.exists(path):
        return
    parents: list[str] = []
    parent = path if is_directory else os.path.dirname(path)
    while not os.path.isdir(parent):
        parents.append(parent)
        parent = os.path.dirname(parent)
    for parent in reversed(parents):
        os.mkdir(parent, 0o755)
        os.chown(parent, *owner)
    if not is_directory:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        os.chown(path, *owner)
