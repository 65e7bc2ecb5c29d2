"""A container's root where nothing can be mounted above an image: put together, or copied.

Put together, it has folders of the container's own where programs write, with the image's files in them copied, and the
image's folders in them bound, read-only. That takes no time to speak of, but what is bound cannot be written to.
A layer that outlives its container has to be the whole: there the image is copied, and the copy hides what is below.
"""

import os
import shutil
import stat

from farcall.launcher import syscalls
from farcall.launcher.stage import copy_attributes

# Folders of the container's own: what the image has in them is copied or bound, name by name.
_OPEN = ("", "etc", "home", "media", "mnt", "opt", "root", "srv", "var")
# Empty ones.
_EMPTY = ("dev", "proc", "run", "sys", "tmp", "var/tmp")
_COPIED_BYTES = 1024 * 1024  # larger files are bound

NOTE = (
    "the image is read-only here but for /tmp, /var/tmp and what is new in /, /etc, /home, /opt, /root, /srv and /var: "
    "`farcall doctor` says what is missing"
)


def put_together(image: str, target: str) -> None:
    """Makes the mount `target` a root with what is in `image`, which is a mount for reading only.

    Nothing in `target` is a symlink yet where something is bound, so nothing leads out.
    """
    for folder in _OPEN:
        source, own = os.path.join(image, folder), os.path.join(target, folder)
        if folder and not (os.path.isdir(own) and not os.path.islink(own)):
            continue
        with os.scandir(source) as entries:
            for entry in entries:
                place, name = os.path.join(own, entry.name), os.path.join(folder, entry.name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(place)
                    if name in _OPEN or name in _EMPTY:
                        copy_attributes(entry.path, place)
                    else:
                        _bind(entry.path, place)
                elif stat.S_ISREG(status.st_mode) and status.st_size > _COPIED_BYTES:
                    os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
                    _bind(entry.path, place)
                else:
                    _copy(entry.path, place, status)
    copy_attributes(image, target)


def copy(image: str, target: str, *, own_userns: bool) -> None:
    """Copies all of `image` into the empty directory `target`, and marks it as what hides all that is below."""
    first: dict[int, str] = {}
    folders = [("", "")]
    for folder, _ in folders:
        with os.scandir(os.path.join(image, folder)) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                place = os.path.join(target, name)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(place)
                    folders.append((name, place))
                elif status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                    # Links of a farm to its store count, too: what matters is whether one was here before.
                    if status.st_ino in first:
                        os.link(first[status.st_ino], place)
                    else:
                        first[status.st_ino] = place
                        _copy(entry.path, place, status)
                else:
                    _copy(entry.path, place, status)
    for name, place in reversed(folders):
        copy_attributes(os.path.join(image, name), place or target)
    os.setxattr(target, f"{'user' if own_userns else 'trusted'}.overlay.opaque", b"y")


def _bind(source: str, target: str) -> None:
    fd = syscalls.open_tree(source, recursive=False)
    syscalls.move_mount(fd, target)
    os.close(fd)


def _copy(source: str, target: str, status: os.stat_result) -> None:
    """A file that is no directory."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)
        return
    if stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target)
    else:
        os.mknod(target, stat.S_IFMT(status.st_mode) | 0o600)
    copy_attributes(source, target)
