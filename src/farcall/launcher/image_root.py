"""Trees of the content store as file systems of a container: its root, and what else it sees of them.

Everything happens in the container's own mount namespace, before it becomes the container's: nothing stays behind.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from farcall.launcher import syscalls
from farcall.launcher.area import OWN_FILES
from farcall.launcher.plan import Plan
from farcall.spec.container import TreeMount

Detached = tuple[int, str, bool]  # a mount's descriptor, where it is to be attached, whether it is a directory

_STAGE = ("dev", "proc", "run")
# Of a layer's folder: where what is below is mounted, what the container writes, and where both show as one.
_LOWER, _OBJECTS, _UPPER, _WORK, _MERGED = "lower", "objects", "upper", "work", "merged"


def make_stage(directory: str) -> None:
    """Folders in which the mounts are made that every container has, until the image's root can take them."""
    for name in _STAGE:
        os.makedirs(f"{directory}/{name}", exist_ok=True)


def enter(root: TreeMount, plan: Plan, idmap_fd: int | None) -> list[Detached]:
    """From the stage, the current directory, to the image's root; returns the stage's mounts, to be attached there.

    They are attached only inside, because on the way to a mount point the image may have symlinks.
    """
    stage = [(syscalls.open_tree(name), f"/{name}", True) for name in _STAGE]
    own = [(syscalls.open_tree(f"run/farcall/{name}"), f"/etc/{name}", False) for name in OWN_FILES]
    _mount_root(root, plan, idmap_fd)
    return stage + own


def _mount_root(root: TreeMount, plan: Plan, idmap_fd: int | None) -> None:
    """Mounts the image with the writable layer over it, and makes that the current directory."""
    os.chdir(plan.spec.upper or plan.area)
    owner = plan.uid_map[0][1], plan.gid_map[0][1]
    for name in (_LOWER, _OBJECTS, _MERGED, _UPPER, _WORK):
        os.makedirs(name, exist_ok=True)
    # The root directory itself is the upper layer's: it has the image's owner and mode.
    lower = _attach_lower(root, idmap_fd)
    seen = os.stat(lower)
    os.chown(_UPPER, seen.st_uid, seen.st_gid)
    os.chmod(_UPPER, stat.S_IMODE(seen.st_mode))
    os.chown(_WORK, *owner)
    below = f"{lower}::{_OBJECTS}" if root.kind == "erofs" else lower
    # Relative names: the folder's own path may have letters that mean something in an option.
    options = f"lowerdir={below},upperdir={_UPPER},workdir={_WORK}"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    if plan.own_userns:
        syscalls.mount("overlay", _MERGED, "overlay", flags, options + ",userxattr")
    else:
        _mount_overlay(options, flags)
    os.chdir(_MERGED)


def _mount_overlay(options: str, flags: int) -> None:
    """Without metacopy the upper layer holds whole files. Kernels before 6.16 refuse that over a data-only layer."""
    try:
        syscalls.mount("overlay", _MERGED, "overlay", flags, options + ",metacopy=off,redirect_dir=off")
    except OSError:
        syscalls.mount("overlay", _MERGED, "overlay", flags, options + ",metacopy=on,redirect_dir=off")


def _attach_lower(tree: TreeMount, idmap_fd: int | None) -> str:
    """Mounts what is below the writable layer; returns where, relative to the current directory."""
    if tree.kind == "erofs":
        _attach(syscalls.open_tree(tree.objects, recursive=False), _OBJECTS, idmap_fd)
        syscalls.mount(tree.path, _LOWER, "erofs", syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV)
        mounted = syscalls.open_tree(_LOWER, recursive=False)
    else:
        mounted = syscalls.open_tree(tree.path, recursive=False)
    _attach(mounted, _LOWER, idmap_fd)
    return _LOWER


def _attach(fd: int, target: str, idmap_fd: int | None) -> None:
    """Attaches a detached mount, read-only, seen through the container's id map."""
    if idmap_fd is not None:
        with contextlib.suppress(OSError):  # not every file system can
            syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    syscalls.move_mount(fd, target)
    os.close(fd)


def open_mount(tree: TreeMount, plan: Plan, idmap_fd: int | None) -> Detached:
    """A tree that is seen read-only beside the root, as a detached mount."""
    place = Path(plan.area, f"tree-{len(os.listdir(plan.area))}")
    place.mkdir()
    before = os.getcwd()
    os.chdir(place)
    try:
        if tree.kind == "erofs":
            for name in (_LOWER, _OBJECTS, _MERGED):
                os.mkdir(name)
            lower = _attach_lower(tree, idmap_fd)
            options = f"lowerdir={lower}::{_OBJECTS},metacopy=on,redirect_dir=on"
            syscalls.mount("overlay", _MERGED, "overlay", syscalls.MS_RDONLY | syscalls.MS_NOSUID, options)
            source = _MERGED
        else:
            os.mkdir(_LOWER)
            source = _attach_lower(tree, idmap_fd)
        path = os.path.join(source, tree.subpath) if tree.subpath else source
        if os.path.realpath(path) != os.path.abspath(path):  # the place itself has no symlinks: they are the tree's
            raise OSError(errno.ELOOP, "a symlink is on the way to it in its tree", tree.subpath)
        fd = syscalls.open_tree(path, recursive=False)
        syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
        return fd, tree.target, stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.chdir(before)
