"""How trees can be mounted here: found by mounting a small one in each way, the best first, as containers will."""

import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from farcall.content.tree import Entry, Tree
from farcall.launcher import image_root, syscalls
from farcall.launcher.area import make_layer
from farcall.launcher.namespaces import Place, own_ids
from farcall.launcher.stage import Stage
from farcall.mounts.erofs import image_of
from farcall.mounts.farm import outside
from farcall.mounts.lazy import fuse
from farcall.spec.container import MountMode, TreeMount

_CONTENT = b"farcall"
_DIGEST = bytes(32)
_USER = 7  # whose the file in the tree is

_FILE_BACKED = (6, 12)  # the first Linux that mounts EROFS from a file
_DATA_LAYERS = (6, 5)  # whose overlayfs has data-only layers
_IDMAPPED_LAYERS = (5, 19)  # whose overlayfs takes idmapped mounts
_IN_USER_NAMESPACES = (5, 11)  # whose overlayfs can be mounted in user namespaces
_ALL_IDS = ((0, 0, 2**32 - 1),)


class Refusal(NamedTuple):
    """Why a way is none here, and what would help."""

    why: str
    remedy: str


class _Way(NamedTuple):
    """One way, while it is tried."""

    mode: MountMode
    lower: Refusal | None  # what keeps the tree from being mounted
    overlay: Refusal | None  # what keeps a container from writing above it


def find(scratch: Path, areas: Path, place: Place) -> MountMode:
    """The best way to mount trees of the store that has `scratch`, for containers that write in `areas` or there.

    Called in a process that has one thread and ends soon: it gets a mount namespace of its own.
    """
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    tried: list[_Way] = []
    for mode in _modes(place):
        tried.append(_try(mode, scratch, areas, place))
        if not (tried[-1].lower or tried[-1].overlay):
            return _with_laziness(_explained(mode, tried), scratch)
    # Nothing can be written above a tree; then at least it can be seen.
    way = next((way for way in tried if way.mode.kind == "directory" and way.lower is None), tried[-1])
    refused = way.overlay or way.lower
    assert refused is not None
    return msgspec.structs.replace(way.mode, overlay=False, why=refused.why, remedy=refused.remedy)


def _modes(place: Place) -> list[MountMode]:
    uids, gids = (() if ids == _ALL_IDS else ids for ids in (own_ids("uid"), own_ids("gid")))
    modes = [MountMode("erofs"), MountMode("directory", uid_map=uids, gid_map=gids)]
    if any(inside != outside for inside, outside, _ in (*place.uid_map, *place.gid_map)):
        uids, gids = place.uid_map, place.gid_map
        modes.append(MountMode("directory", is_shifted=True, uid_map=uids, gid_map=gids))
    return modes


def _with_laziness(mode: MountMode, scratch: Path) -> MountMode:
    """With what keeps files from being fetched when they are opened, if anything does."""
    if mode.kind != "erofs":
        return msgspec.structs.replace(mode, not_lazy=mode.why)
    place = scratch / f"trial-{secrets.token_hex(8)}"
    place.mkdir()
    try:
        device = os.open(fuse.DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            syscalls.mount("farcall", str(place), "fuse", syscalls.MS_RDONLY, fuse.mount_options(device))
            syscalls.umount(str(place))
        finally:
            os.close(device)
    except OSError as error:
        said = error.strerror or str(error)
        no_fuse = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        why = f"this machine has no FUSE ({fuse.DEVICE})" if no_fuse else f"FUSE cannot be mounted: {said}"
        return msgspec.structs.replace(mode, not_lazy=why)
    finally:
        place.rmdir()
    return msgspec.structs.replace(mode, lazy=True)


def _explained(mode: MountMode, tried: list[_Way]) -> MountMode:
    refusals = [refused for way in tried if (refused := way.lower or way.overlay)]
    if not refusals:
        return mode
    return msgspec.structs.replace(mode, why="; ".join(refused.why for refused in refusals), remedy=refusals[-1].remedy)


def _try(mode: MountMode, scratch: Path, areas: Path, place: Place) -> _Way:
    name = f"trial-{secrets.token_hex(8)}"
    tree, area = scratch / name, areas / name
    try:
        area.mkdir(mode=0o711)
        tree.mkdir(mode=0o711)
        mount = _make_tree(mode, tree)
        disks = [area] if _is_same_disk(area, tree) else [area, tree]
        for disk in disks:
            stage = Stage(str(area), str(disk), place.idmap_fd)
            try:
                layers = stage.layers(mount)
                _check_owner(f"{layers.lower}/file", place)
                try:
                    make_layer("disk")
                    image_root.lay(layers, own_userns=not syscalls.is_initial_user_namespace())
                    _check_writing("merged", place)
                except OSError as error:
                    return _Way(mode, None, _why_no_overlay(mode, error, disk))
            finally:
                stage.leave()
    except OSError as error:
        return _Way(mode, _why_no_tree(mode, error), None)
    finally:
        for directory in (tree, area):
            shutil.rmtree(directory, ignore_errors=True)
    return _Way(mode, None, None)


def _is_same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _make_tree(mode: MountMode, directory: Path) -> TreeMount:
    """A tree with one file, as `mounts.prepare` would make it."""
    if mode.kind == "erofs":
        entry = Entry(b"file", 0o100640, _USER, _USER, 0, len(_CONTENT), _DIGEST)
        image, objects = directory / "image", directory / "objects"
        image.write_bytes(image_of(Tree.of([entry])))
        name = _DIGEST.hex()
        (objects / name[:2]).mkdir(parents=True)
        (objects / name[:2] / name[2:]).write_bytes(_CONTENT)
        return TreeMount("erofs", str(image), str(objects))
    farm = directory / "farm"
    farm.mkdir()
    (farm / "file").write_bytes(_CONTENT)
    os.chown(farm / "file", outside(mode.uid_map, _USER), outside(mode.gid_map, _USER))
    return TreeMount("directory", str(farm), is_shifted=mode.is_shifted)


def _check_owner(path: str, place: Place) -> None:
    """The file's owner is what the container takes for its user 7."""
    found = os.stat(path)
    wanted = outside(place.uid_map, _USER), outside(place.gid_map, _USER)
    if (found.st_uid, found.st_gid) != wanted:
        raise OSError(errno.EOVERFLOW, f"files show as {found.st_uid}:{found.st_gid}, not as {wanted[0]}:{wanted[1]}")


def _check_writing(root: str, place: Place) -> None:
    """What containers do: read, change owners, write to what is below, hide it, make anew."""
    path = f"{root}/file"
    _check_owner(path, place)
    os.chown(path, place.uid_map[0][1], place.gid_map[0][1])
    with open(path, "r+b") as file:
        if file.read() != _CONTENT:
            raise OSError(errno.EIO, "a file shows other bytes than it has")
        file.write(b"!")
    os.unlink(path)
    os.mkdir(path)
    if os.listdir(root) != ["file"]:
        raise OSError(errno.EIO, "a directory shows other names than it has")


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split("-")[0].split(".")[:2]
    return int(major), int(minor)


def _release() -> str:
    return "Linux {}.{}".format(*_kernel())


def _why_no_tree(mode: MountMode, error: OSError) -> Refusal:
    said = error.strerror or str(error)
    if mode.kind == "erofs":
        if error.errno in (errno.EPERM, errno.EACCES):
            return Refusal("only the system's own root can mount EROFS", "run the server as root")
        if error.errno == errno.ENODEV:
            return Refusal("this kernel has no EROFS", "sudo modprobe erofs")
        if error.errno == errno.ENOTBLK or _kernel() < _FILE_BACKED:
            return Refusal(f"{_release()} mounts no EROFS from a file", "use Linux 6.12 or newer")
        return Refusal(f"EROFS cannot be mounted: {said}", "")
    if not mode.is_shifted and _kernel() < _IDMAPPED_LAYERS:
        return Refusal(f"{_release()} has no idmapped mounts for overlayfs", "use Linux 5.19 or newer")
    return Refusal(f"the disk of the content store cannot be idmapped: {said}", _local("XDG_DATA_HOME"))


def _why_no_overlay(mode: MountMode, error: OSError, disk: Path) -> Refusal:
    said = error.strerror or str(error)
    if error.errno == errno.ENODEV:
        return Refusal("this kernel has no overlay filesystem", "sudo modprobe overlay")
    if mode.kind == "erofs" and _kernel() < _DATA_LAYERS:
        return Refusal(f"overlayfs of {_release()} has no data-only layers", "use Linux 6.12 or newer")
    if mode.kind == "directory" and not mode.is_shifted and _kernel() < _IDMAPPED_LAYERS:
        return Refusal(f"{_release()} has no idmapped mounts for overlayfs", "use Linux 5.19 or newer")
    if not syscalls.is_initial_user_namespace() and _kernel() < _IN_USER_NAMESPACES:
        return Refusal(f"overlayfs of {_release()} is for root only", "run the server as root, or use Linux 5.11")
    return Refusal(f"overlayfs cannot write on the disk of {disk.parent}: {said}", _local("XDG_STATE_HOME"))


def _local(variable: str) -> str:
    return f"set {variable} to a directory on a local disk (ext4, xfs, btrfs)"
