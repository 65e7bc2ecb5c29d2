"""The walls of a container: its namespaces, its root file system, its capabilities. Runs in what becomes pid 1.

The order is not free. Mounts are made while the process is still root of the launcher's user namespace, because only
there idmapped mounts are allowed; the container's own user namespace comes last, so the mount, network and pid
namespaces belong to the launcher's and nothing inside has power over them.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable

from farcall.launcher import image_root, patchwork, syscalls
from farcall.launcher.area import OWN_FILES, SYSTEM, Owner, make_mount_point, make_skeleton
from farcall.launcher.plan import Plan
from farcall.launcher.stage import BindError, Detached, Stage
from farcall.launcher.volumes import open_writable
from farcall.spec.container import Bind, ContainerSpec

# What container root keeps, so that apt and pip work: see capabilities(7).
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE = 0, 1, 3, 5, 6, 7, 10
KEPT_CAPABILITIES = frozenset(
    {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE}
)

# Parts of the host's /etc that hold no secret and that libraries look for. Not all of /etc/ssl: it holds private keys.
_ETC = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/etc/localtime",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41


def enter_namespaces(plan: Plan, netns_fd: int | None) -> None:
    """Fresh mount, ipc and uts namespaces and the given or a fresh, empty network namespace with loopback up."""
    fresh = syscalls.NEWNS | syscalls.NEWIPC | syscalls.NEWUTS
    if netns_fd is None:
        syscalls.unshare(fresh | syscalls.NEWNET)
        _loopback_up()
    else:
        syscalls.unshare(fresh)
        syscalls.setns(netns_fd, syscalls.NEWNET)
    syscalls.sethostname(plan.spec.container_id[:64])


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def make_root(plan: Plan, idmap_fd: int | None) -> list[str]:
    """Build the root file system and make it the root of the mount namespace.

    Returns notes for the user. Raises BindError for a bind that cannot be made, and OSError.
    """
    owner = plan.uid_map[0][1], plan.gid_map[0][1]
    notes: list[str] = []
    # Sources are opened as detached mounts before the root changes and attached after: no symlink in a target can then
    # lead out of the container.
    system = _open_binds(_system_binds(plan.spec), idmap_fd)
    chosen = _open_binds(plan.spec.binds, idmap_fd)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    devices = [(syscalls.open_tree(f"/dev/{name}", recursive=False), name) for name in _DEVICES]
    stage = None
    if plan.spec.root or plan.spec.trees:
        stage = Stage(plan.area, plan.spec.upper or plan.area, idmap_fd, plan.lazy)
    if stage is not None:
        for tree in plan.spec.trees:
            if tree.writable:
                chosen += open_writable(stage, tree, own_userns=plan.own_userns)
            else:
                chosen.append(stage.open(tree))
    # Parents before what is inside them; the sort is stable, so of two on one target the later one wins.
    mounts = system + sorted(chosen, key=lambda mount: mount.target.rstrip("/").count("/"))
    if plan.spec.root is not None:
        image_root.make_system_places()
    else:
        if stage is not None:
            stage.leave()
        _enter_area(plan, owner)
    os.umask(0)
    _make_own_files(plan, owner)
    # Both before the host's /proc is out of sight: the kernel allows an unprivileged proc only beside a visible one.
    hardened = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", "proc", "proc", hardened)
    _make_dev(devices, owner)
    if not _open_low_ports():
        notes.append("ports below 1024 cannot be bound: net.ipv4.ip_unprivileged_port_start is not writable")
    if plan.spec.root is not None and stage is not None:
        mounts = image_root.enter(plan.spec.root, plan, stage, mounts)
        if not plan.spec.root.overlay and not plan.spec.upper:
            notes.append(patchwork.NOTE)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".")
    os.chdir("/")
    for mount in mounts:
        # Where an image has a symlink it is followed, within the image, also one that leads to nothing yet.
        _attach(mount, os.path.realpath(mount.target) if plan.spec.root is not None else mount.target, owner)
    try:
        make_mount_point(os.path.realpath(plan.spec.cwd), True, owner)
    except OSError as error:
        raise BindError(f"cannot make the working directory {plan.spec.cwd}: {os.strerror(error.errno or 0)}") from None
    os.umask(0o022)
    return notes


def _enter_area(plan: Plan, owner: Owner) -> None:
    """Makes the area's root a mount, and the current directory."""
    root = plan.area + "/root"
    tree = syscalls.open_tree(root, recursive=False)
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV, recursive=False)
    syscalls.move_mount(tree, root)
    os.close(tree)
    os.chdir(root)
    if not plan.area_made:
        make_skeleton(".", owner)


def all_binds(spec: ContainerSpec) -> list[Bind]:
    """What of the host a container sees, in the order of mounting."""
    return _system_binds(spec) + sorted(spec.binds, key=lambda bind: bind.target.rstrip("/").count("/"))


def _system_binds(spec: ContainerSpec) -> list[Bind]:
    binds: list[Bind] = []
    if spec.root is None:
        binds = [Bind(path, path, optional=True) for path in SYSTEM if not os.path.islink(path)]
        binds += [Bind(path, path, optional=True) for path in _ETC]
    interpreter = spec.interpreter
    paths = {*interpreter.paths, interpreter.runner_path} if interpreter is not None else ()
    for path in sorted(paths):
        if not any(_is_below(path, bind.target) for bind in binds if bind.source == bind.target):
            binds.append(Bind(path, path, optional=True))
    return binds


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _open_binds(binds: Iterable[Bind], idmap_fd: int | None) -> list[Detached]:
    opened = [_open_bind(bind, idmap_fd) for bind in binds]
    return [mount for mount in opened if mount is not None]


def _open_bind(bind: Bind, idmap_fd: int | None) -> Detached | None:
    try:
        tree = syscalls.open_tree(bind.source)
    except FileNotFoundError:
        if bind.optional:
            return None
        raise BindError(f"{bind.source} does not exist on the host (to be mounted at {bind.target})") from None
    attributes = syscalls.MOUNT_ATTR_NOSUID | (syscalls.MOUNT_ATTR_RDONLY if bind.read_only else 0)
    if idmap_fd is not None:
        # Some file systems cannot be idmapped (FUSE without it, older overlays): the plain bind still shows what is
        # readable for everyone.
        with contextlib.suppress(OSError):
            syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
    syscalls.mount_setattr(tree, attributes)
    return Detached(tree, bind.target, stat.S_ISDIR(os.fstat(tree).st_mode))


def _attach(mount: Detached, target: str, owner: Owner) -> None:
    try:
        make_mount_point(target, mount.is_directory, owner)
        syscalls.move_mount(mount.fd, target)
    except OSError as error:
        raise BindError(f"cannot mount at {mount.target}: {_why_not(mount, target, error)}") from error
    os.close(mount.fd)


def _why_not(mount: Detached, target: str, error: OSError) -> str:
    if os.path.lexists(target) and os.path.isdir(target) != mount.is_directory:
        if mount.is_directory:
            return "that is a file in the container, and what is mounted is a folder; choose another path"
        return (
            "that is a folder in the container, and what is mounted is a file; name the file in it, or end in a slash"
        )
    return os.strerror(error.errno or 0)


def _make_own_files(plan: Plan, owner: Owner) -> None:
    syscalls.mount("tmpfs", "run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"mode=755,{_ids(owner)}")
    name = plan.spec.container_id
    contents = {
        "hostname": name + "\n",
        "hosts": plan.hosts or f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n",
        "resolv.conf": plan.resolv_conf,
    }
    for directory in ("run/farcall", "run/lock"):
        os.mkdir(directory, 0o755)
        os.chown(directory, *owner)
    for file in OWN_FILES:
        fd = os.open(f"run/farcall/{file}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.write(fd, contents[file].encode())
        os.fchown(fd, *owner)
        os.close(fd)


def _ids(owner: Owner) -> str:
    return f"uid={owner[0]},gid={owner[1]}"


def _make_dev(devices: list[tuple[int, str]], owner: Owner) -> None:
    ids = _ids(owner)
    syscalls.mount("tmpfs", "dev", "tmpfs", syscalls.MS_NOSUID, f"mode=755,size=64k,{ids}")
    for fd, name in devices:
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        syscalls.move_mount(fd, f"dev/{name}")
        os.close(fd)
    for name, mode in (("pts", 0o755), ("shm", 0o1777)):
        os.mkdir(f"dev/{name}", mode)
    nosuid_noexec = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    syscalls.mount("devpts", "dev/pts", "devpts", nosuid_noexec, "newinstance,ptmxmode=0666,mode=0620")
    syscalls.mount("tmpfs", "dev/shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"mode=1777,{ids}")
    os.symlink("pts/ptmx", "dev/ptmx")
    os.symlink("/proc/self/fd", "dev/fd")
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{fd}", f"dev/{name}")


def _open_low_ports() -> bool:
    # The network namespace belongs to the launcher's user namespace, so CAP_NET_BIND_SERVICE in the container's own
    # does not reach it; the namespace's own setting does.
    try:
        with open("proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as file:
            file.write("0")
    except OSError:
        return False
    return True


def write_id_maps(pid: int, plan: Plan) -> None:
    """From outside: map the ids of the user namespace that process `pid` has just entered."""
    for kind, id_map in (("gid", plan.gid_map), ("uid", plan.uid_map)):
        lines = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in id_map)
        try:
            fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # The host's /proc is mounted read-only; the container's own, through its root, is not.
            fd = os.open(f"/proc/{pid}/root/proc/1/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines.encode())
        finally:
            os.close(fd)


def become_container_root() -> None:
    """Once the ids are mapped: be uid 0 of the new user namespace, without supplementary groups where allowed."""
    with contextlib.suppress(PermissionError):  # a namespace with setgroups denied has none to drop but the user's own
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
