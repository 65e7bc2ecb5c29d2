"""A tree of the content store as a container's root: read-only below, with a writable layer of the container's own.

    what the container writes    disk/upper, on disk; what a build commits
    places to mount at           points, in the stage: those that the image lacks, so that no build commits them
    the image                    EROFS over the store's objects, or a directory

Everything happens in the mount namespace that becomes the container's, before it does: nothing stays behind.
"""

import os
import stat

from farcall.launcher import patchwork, syscalls
from farcall.launcher.area import OWN_FILES, Owner, make_layer
from farcall.launcher.plan import Plan
from farcall.launcher.stage import Detached, Layers, Stage, copy_attributes
from farcall.spec.container import TreeMount

_LAYER = "disk"
_UPPER = f"{_LAYER}/upper"
_POINTS, _MERGED = "points", "merged"
# Before the image's own root can take them, these are mounted in the stage.
_SYSTEM = ("dev", "proc", "run")
# What programs rely on, and minimal images lack: with their modes.
_EXPECTED = (("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777), ("root", 0o700))
_MAX_SYMLINKS = 40  # on one path, as in the kernel
# The layer is gone with the container, or committed by whoever keeps it: programs in it need not wait for the disk.
_OPTIONS = "index=off,volatile"
# A change of owner copies no data, and directories can be renamed; data-only layers are looked at. In a user namespace
# overlayfs can do neither, and keeps its marks in user attributes.
_AS_ROOT, _AS_USER = "metacopy=on,redirect_dir=on", "userxattr"


def make_system_places() -> None:
    """Folders in the stage for the mounts that every container has."""
    for name in _SYSTEM:
        os.mkdir(name)


def enter(root: TreeMount, plan: Plan, stage: Stage, extra: list[Detached]) -> list[Detached]:
    """Mounts the root, with places for `extra`, and makes it the current directory.

    Returns what is to be attached in it, in this order: the stage's mounts, the container's own files, `extra`. Only
    inside, because on the way to a place the image may have symlinks.
    """
    mounts = [Detached(syscalls.open_tree(name), f"/{name}", True) for name in _SYSTEM]
    mounts += [Detached(syscalls.open_tree(f"run/farcall/{name}"), f"/etc/{name}", False) for name in OWN_FILES]
    mounts += extra
    layers = stage.layers(root)
    if not plan.area_made:
        make_layer("disk")
    if root.overlay:
        _lay_with_points(layers, plan, mounts)
    else:
        _bind_upper()
        if not plan.spec.upper:
            patchwork.put_together(layers.lower, _MERGED)
        elif not os.listdir(_UPPER):
            patchwork.copy(layers.lower, _MERGED, own_userns=plan.own_userns)
        _make_expected(plan)
    os.chdir(_MERGED)
    return mounts


def _make_expected(plan: Plan) -> None:
    for name, mode in _EXPECTED:
        if not os.path.lexists(f"{_MERGED}/{name}"):
            os.mkdir(f"{_MERGED}/{name}")
            os.chmod(f"{_MERGED}/{name}", mode)
            os.chown(f"{_MERGED}/{name}", plan.uid_map[0][1], plan.gid_map[0][1])


def _lay_with_points(layers: Layers, plan: Plan, mounts: list[Detached]) -> None:
    points = _Points(layers.lower, (plan.uid_map[0][1], plan.gid_map[0][1]))
    for name, mode in _EXPECTED:
        points.add(f"/{name}", True, mode)
    for mount in mounts:
        points.add(mount.target, mount.is_directory)
    points.finish()
    lay(layers, own_userns=plan.own_userns, points=points.is_needed)


def _bind_upper() -> None:
    """Makes the layer that is written the whole root."""
    os.mkdir(_MERGED)
    fd = syscalls.open_tree(_UPPER, recursive=False)
    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV, recursive=False)
    syscalls.move_mount(fd, _MERGED)
    os.close(fd)


def lay(layers: Layers, *, own_userns: bool, points: bool = False, layer: str = _LAYER, merged: str = _MERGED) -> None:
    """Mounts what is in the folder `layer` of the stage, its upper/, over the layers of an image, as the new folder
    `merged`."""
    # The root directory itself is the upper layer's.
    copy_attributes(layers.lower, f"{layer}/upper")
    lower = f"{_POINTS}:{layers.option}" if points else layers.option
    written = f"upperdir={layer}/upper,workdir={layer}/work"
    options = f"lowerdir={lower},{written},{_OPTIONS},{_AS_USER if own_userns else _AS_ROOT}"
    os.mkdir(merged)
    syscalls.mount("overlay", merged, "overlay", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)


class _Points:
    """A layer above the image that has places to mount at, as far as the image lacks them."""

    def __init__(self, image: str, owner: Owner) -> None:
        self._image = image
        self._owner = owner
        self._copied: list[str] = []  # directories that the image has, too
        self.is_needed = False

    def add(self, target: str, is_directory: bool, mode: int = 0o755) -> None:
        """Make a place for a mount at `target`. Where the image has something else in the way, nothing is made."""
        found, missing = self._resolve(target)
        if not missing:
            return
        self.is_needed = True
        path, below = _POINTS, self._image
        for name in ("", *found):
            path, below = os.path.join(path, name), os.path.join(below, name)
            if not os.path.isdir(path):
                os.mkdir(path)
                self._copied.append(path.removeprefix(_POINTS))
        for name in missing[:-1]:
            path += f"/{name}"
            self._make(path, True, 0o755)
        self._make(f"{path}/{missing[-1]}", is_directory, mode)

    def finish(self) -> None:
        """Once all are made: directories that the image has look as there."""
        for path in reversed(self._copied):
            copy_attributes(self._image + path, _POINTS + path)

    def _make(self, path: str, is_directory: bool, mode: int) -> None:
        try:
            if is_directory:
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
        except (FileExistsError, NotADirectoryError):
            return
        os.chmod(path, mode if is_directory else 0o644)
        os.chown(path, *self._owner)

    def _resolve(self, target: str) -> tuple[list[str], list[str]]:
        """The names that lead to a path of the image, symlinks followed within it: directories that it has, and what
        it lacks. The second are none when it is there, and when a file or a loop is in the way."""
        found: list[str] = []
        pending = target.split("/")[::-1]
        symlinks = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del found[-1:]
                continue
            path = "/".join((self._image, *found, name))
            try:
                kind = stat.S_IFMT(os.lstat(path).st_mode)
            except FileNotFoundError:
                rest = [name, *(part for part in reversed(pending) if part not in ("", "."))]
                return (found, []) if ".." in rest else (found, rest)
            except OSError:  # a name that no file system takes
                return found, []
            if kind == stat.S_IFLNK:
                symlinks += 1
                if symlinks > _MAX_SYMLINKS:
                    return found, []
                link = os.readlink(path)
                if link.startswith("/"):
                    found.clear()
                pending += link.split("/")[::-1]
            elif kind == stat.S_IFDIR:
                found.append(name)
            else:
                return found, []
        return found, []
