"""Filesystems: what images, volumes and the writable area of containers are mounted from."""

import errno
import fcntl
import os
import select
import struct
from pathlib import Path

import msgspec

from farcall.content.tree import Tree
from farcall.doctor.finding import Finding
from farcall.doctor.setting import as_root, kernel_version
from farcall.doctor.trial import Trial, attempt, enter_mount_namespace, enter_user_namespace, is_privileged, scratch
from farcall.launcher import mount_modes, namespaces, syscalls
from farcall.mounts.erofs import image_of
from farcall.spec.container import MountMode

GROUP = "Filesystems"
_FS_IOC_MEASURE_VERITY = 0xC0046686
_FUSE_INIT = 26
_FUSE_PASSTHROUGH = 1 << 5  # in flags2
_AS_ROOT = "run the server as root"
_IMAGES_SECONDS = 8.0  # for a handful of mounts


def probe() -> list[Finding]:
    """Overlay, idmapped mounts, EROFS, FUSE, fs-verity: each mounted for real, where nobody sees it."""
    try:
        temporary = scratch()
    except OSError as error:
        detail, remedy = f"nothing can be written: {error.strerror}", "set XDG_STATE_HOME to a directory with room"
        return [Finding(GROUP, "state directory", "missing", "what farcall keeps", detail, remedy, required=True)]
    with temporary as directory:
        return [
            *_images(directory),
            _overlay(directory),
            _data_layers(directory),
            _idmapped(directory),
            _erofs(directory),
            *_fuse(directory),
            _verity(directory),
        ]


def _images(state: str) -> list[Finding]:
    """What the launcher finds when it looks for the best way to mount trees."""
    purpose = "file systems of containers, and source beside them"

    def find() -> str:
        with scratch("XDG_DATA_HOME", ".local/share") as data:
            place = namespaces.enter()
            if place.refusal is not None:
                raise OSError(place.refusal)
            mode = mount_modes.find(Path(data), Path(state), place)
        return msgspec.json.encode(mode).decode()

    trial = attempt(find, seconds=_IMAGES_SECONDS)
    if not trial.ok:
        return [Finding(GROUP, "images", "missing", purpose, trial.text)]
    mode = msgspec.json.decode(trial.text, type=MountMode)
    if mode.kind == "erofs":
        return [Finding(GROUP, "images", "ok", purpose, "EROFS over shared files"), _lazy_images(mode)]
    how = "directories of links to shared files" if mode.overlay else "of which a few directories can be written to"
    detail = f"{how}: {mode.why}" if mode.why else how
    return [Finding(GROUP, "images", "limited", purpose, detail, mode.remedy), _lazy_images(mode)]


def _lazy_images(mode: MountMode) -> Finding:
    name, purpose = "lazy images", "containers that start before all files of their image have arrived"
    if mode.lazy:
        return Finding(GROUP, name, "ok", purpose, "files are fetched when they are opened")
    return Finding(GROUP, name, "limited", purpose, f"all files are fetched first: {mode.not_lazy}", mode.remedy)


def _make(directory: str, *names: str) -> list[str]:
    paths = [os.path.join(directory, name) for name in names]
    for path in paths:
        os.makedirs(path, exist_ok=True)
    return paths


def _overlay(directory: str) -> Finding:
    purpose = "containers that write over a shared, unchanged image"
    lower, upper, work, merged = _make(directory, "lower", "upper", "work", "merged")

    def mount(in_user_namespace: bool) -> None:
        enter_mount_namespace(in_user_namespace=in_user_namespace)
        extra = ",userxattr" if in_user_namespace else ""
        options = f"lowerdir={lower},upperdir={upper},workdir={work}{extra}"
        syscalls.mount("overlay", merged, "overlay", 0, options)

    here = attempt(lambda: mount(False)) if is_privileged() else None
    as_user = attempt(lambda: mount(True))
    if as_user.ok and (here is None or here.ok):
        return Finding(GROUP, "overlay", "ok", purpose, "also in user namespaces")
    if here is not None and here.ok:
        detail = f"not in user namespaces: {as_user.text}"
        return Finding(GROUP, "overlay", "limited", purpose, detail, _overlay_remedy(as_user))
    refused = here or as_user
    return Finding(GROUP, "overlay", "missing", purpose, refused.text, _overlay_remedy(refused))


def _overlay_remedy(trial: Trial) -> str:
    if trial.errno == errno.ENODEV:
        return as_root("modprobe overlay")
    if trial.errno == errno.EINVAL:
        return "set XDG_STATE_HOME to a directory on a local disk (ext4, xfs, btrfs)"
    if kernel_version() < (5, 11):
        return "use Linux 5.11 or newer"
    return ""


def _data_layers(directory: str) -> Finding:
    purpose = "images whose files are fetched when they are opened"
    name = "overlay data layers"
    lower, data, merged = _make(directory, "lower", "data", "merged")

    def mount() -> None:
        enter_mount_namespace(in_user_namespace=False)
        options = f"lowerdir={lower}::{data},metacopy=on,redirect_dir=on"
        syscalls.mount("overlay", merged, "overlay", syscalls.MS_RDONLY, options)

    if not is_privileged():
        return Finding(GROUP, name, "missing", purpose, "for root only", _AS_ROOT)
    trial = attempt(mount)
    if trial.ok:
        return Finding(GROUP, name, "ok", purpose)
    remedy = "use Linux 6.5 or newer" if kernel_version() < (6, 5) else _overlay_remedy(trial)
    return Finding(GROUP, name, "missing", purpose, trial.text, remedy)


def _idmapped(directory: str) -> Finding:
    purpose = "files shared by containers with different users"
    (source,) = _make(directory, "lower")

    def mount() -> None:
        ready, tell = os.pipe()
        holder = os.fork()
        if holder == 0:
            try:
                enter_user_namespace()
                os.write(tell, b"1")
                select.select([], [], [], 5)
            finally:
                os._exit(0)
        os.close(tell)
        try:
            if not os.read(ready, 1):
                raise OSError(errno.EPERM, "no user namespace")
            userns = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
            enter_mount_namespace(in_user_namespace=False)
            tree = syscalls.open_tree(source, recursive=False)
            syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive=False)
        finally:
            os.kill(holder, 9)
            os.waitpid(holder, 0)

    if not is_privileged():
        return Finding(GROUP, "idmapped mounts", "missing", purpose, "for root only", _AS_ROOT)
    trial = attempt(mount)
    if trial.ok:
        return Finding(GROUP, "idmapped mounts", "ok", purpose)
    remedy = "use Linux 5.12 or newer" if kernel_version() < (5, 12) else "set XDG_STATE_HOME to a directory on ext4"
    return Finding(GROUP, "idmapped mounts", "missing", purpose, trial.text, remedy)


def _erofs(directory: str) -> Finding:
    purpose = "images that are mounted in under a millisecond"
    name = "EROFS from a file"
    (target,) = _make(directory, "merged")
    image = os.path.join(directory, "image.erofs")
    with open(image, "wb") as stream:
        stream.write(image_of(Tree.of(())))

    def mount() -> None:
        enter_mount_namespace(in_user_namespace=False)
        syscalls.mount(image, target, "erofs", syscalls.MS_RDONLY)

    if not is_privileged():
        return Finding(GROUP, name, "missing", purpose, "for root only", _AS_ROOT)
    trial = attempt(mount)
    if trial.ok:
        return Finding(GROUP, name, "ok", purpose)
    if trial.errno == errno.ENODEV:
        return Finding(GROUP, name, "missing", purpose, "this kernel has no EROFS", as_root("modprobe erofs"))
    return Finding(GROUP, name, "missing", purpose, trial.text, "use Linux 6.12 or newer")


def _fuse(directory: str) -> list[Finding]:
    purpose, name = "files that are fetched when they are opened", "FUSE"
    passthrough_purpose = "FUSE at the speed of the disk"
    (target,) = _make(directory, "merged")
    privileged = is_privileged()

    def mount() -> str:
        device = os.open("/dev/fuse", os.O_RDWR)
        enter_mount_namespace(in_user_namespace=not privileged)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("farcall-doctor", target, "fuse", 0, options)
        return str(_fuse_flags2(os.read(device, 65536)))

    trial = attempt(mount)
    if not trial.ok:
        absent = trial.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        remedy = as_root("modprobe fuse") if absent else as_root("chmod 666 /dev/fuse")
        return [
            Finding(GROUP, name, "missing", purpose, trial.text, remedy),
            Finding(GROUP, "FUSE passthrough", "missing", passthrough_purpose, "no FUSE"),
        ]
    if not int(trial.text) & _FUSE_PASSTHROUGH:
        passthrough = ("missing", "not in this kernel", "use Linux 6.9 or newer")
    elif not privileged:
        passthrough = ("missing", "for root only", _AS_ROOT)
    else:
        passthrough = ("ok", "", "")
    status, detail, remedy = passthrough
    return [
        Finding(GROUP, name, "ok", purpose, "" if privileged else "in user namespaces"),
        Finding(GROUP, "FUSE passthrough", "ok" if status == "ok" else "missing", passthrough_purpose, detail, remedy),
    ]


def _fuse_flags2(request: bytes) -> int:
    """The second word of feature flags in the kernel's first request to a FUSE server (linux/fuse.h, fuse_init_in)."""
    if len(request) < 60 or struct.unpack_from("=I", request, 4)[0] != _FUSE_INIT:
        return 0
    return struct.unpack_from("=I", request, 56)[0]


def _verity(directory: str) -> Finding:
    purpose = "stored files that the kernel checks at every read"
    path = os.path.join(directory, "file")
    with open(path, "wb") as stream:
        stream.write(b"farcall")

    def measure() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        # An algorithm number and a size, then room for the digest.
        fcntl.ioctl(descriptor, _FS_IOC_MEASURE_VERITY, bytearray(struct.pack("=HH", 0, 64) + bytes(64)))

    trial = attempt(measure)
    if trial.errno == errno.ENODATA:  # supported here, and off for this file
        return Finding(GROUP, "fs-verity", "ok", purpose)
    detail = "not on the filesystem of the state directory"
    remedy = "keep the state on ext4 with the verity feature (tune2fs -O verity DEVICE) or on btrfs"
    return Finding(GROUP, "fs-verity", "missing", purpose, detail, remedy)
