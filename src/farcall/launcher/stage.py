"""Where the file systems of a container are put together: a tmpfs that nobody else sees, gone with the last use.

It lies over the container's area in the mount namespace that becomes the container's, and is the current directory
while it is used. So what is mounted here has short names of our own choosing, whatever the paths behind it look like,
and mount points cost no write to the disk.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from farcall.launcher import syscalls
from farcall.spec.container import TreeMount

_LOCKED = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_READ_ONLY = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
# Overlays over a tree look up what its files' inodes say is in the data-only layer.
_FOLLOW_DATA = "metacopy=on,redirect_dir=on"


class BindError(Exception):
    """Something that cannot be mounted: `str()` says what and why."""


class Detached(NamedTuple):
    """A mount that is not attached anywhere yet."""

    fd: int
    target: str  # where it is to be attached in the container
    is_directory: bool


class Layers(NamedTuple):
    """Names in the stage of what an overlay shows of a tree: `lower`, and where its files are, "" if in itself; a
    second place, after a colon, for those that are not in the first."""

    lower: str
    data: str

    @property
    def option(self) -> str:
        return f"{self.lower}::{self.data.replace(':', '::')}" if self.data else self.lower


class Stage:
    """The stage of one container. Make it once the mount namespace is private; it is the current directory then."""

    def __init__(
        self, place: str, disk_directory: str, idmap_fd: int | None, lazy: Mapping[str, str] | None = None
    ) -> None:
        """At the directory `place`; `disk_directory` is the folder "disk" in it. `lazy` is that of a `Plan`."""
        self._lazy = lazy or {}
        self._place = place
        self._idmap_fd = idmap_fd
        self._count = 0
        # What is below is out of sight from here on.
        disk = syscalls.open_tree(disk_directory, recursive=False)
        syscalls.mount("tmpfs", self._place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
        os.chdir(self._place)
        os.mkdir("disk")
        syscalls.move_mount(disk, "disk")
        os.close(disk)

    def leave(self) -> None:
        """Take it away again; the area is in sight."""
        os.chdir("/")
        syscalls.umount(self._place)

    def layers(self, tree: TreeMount) -> Layers:
        """Mounts a tree's layers, each seen through the container's id map."""
        self._count += 1
        lower = f"lower{self._count}"
        os.mkdir(lower)
        if tree.kind == "directory":
            self._attach(syscalls.open_tree(tree.path, recursive=False), lower, tree.is_shifted)
            return Layers(lower, "")
        data, missing = f"data{self._count}", f"missing{self._count}"
        os.mkdir(data)
        # Overlayfs opens objects as who mounts it: they need no ids of the container's.
        self._attach(syscalls.open_tree(tree.objects, recursive=False), data, is_shifted=True)
        if tree.is_lazy:
            os.mkdir(missing)
            self._attach(syscalls.open_tree(self._lazy[tree.objects], recursive=False), missing, is_shifted=True)
        syscalls.mount(tree.path, lower, "erofs", _READ_ONLY)
        if self._idmap_fd is not None:
            self._attach(syscalls.open_tree(lower, recursive=False), lower, is_shifted=False)
        return Layers(lower, f"{data}:{missing}" if tree.is_lazy else data)

    def read_only(self, layers: Layers) -> str:
        """Mounts the layers as one read-only file system, where that takes a mount; returns its name."""
        if not layers.data:
            return layers.lower
        merged = f"merged{self._count}"
        os.mkdir(merged)
        syscalls.mount("overlay", merged, "overlay", _READ_ONLY, f"lowerdir={layers.option},{_FOLLOW_DATA}")
        return merged

    def open(self, tree: TreeMount) -> Detached:
        """A tree that the container sees, read-only, beside its root. Raises BindError and OSError."""
        source = self.read_only(self.layers(tree))
        path = os.path.normpath(os.path.join(source, tree.subpath))
        # The stage itself has no symlinks: they are the tree's.
        if ".." in tree.subpath.split("/") or os.path.realpath(path) != os.path.join(os.getcwd(), path):
            raise BindError(f"cannot mount at {tree.target}: a symlink is on the way to {tree.subpath} in its tree")
        fd = syscalls.open_tree(path, recursive=False)
        syscalls.mount_setattr(fd, _LOCKED)
        return Detached(fd, tree.target, stat.S_ISDIR(os.fstat(fd).st_mode))

    def _attach(self, fd: int, name: str, is_shifted: bool) -> None:
        """Attaches a mount, for reading only."""
        if self._idmap_fd is not None and not is_shifted:
            syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_IDMAP, userns_fd=self._idmap_fd)
        syscalls.mount_setattr(fd, _LOCKED)
        syscalls.move_mount(fd, name)
        os.close(fd)


def copy_attributes(source: str, target: str) -> None:
    """Owner, mode, extended attributes and time of a file or directory, no symlink."""
    seen = os.stat(source)
    os.chown(target, seen.st_uid, seen.st_gid)
    os.chmod(target, stat.S_IMODE(seen.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(("trusted.", "user.overlay.")):
            with contextlib.suppress(OSError):  # not every file system has every kind
                os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
