"""The launcher's own place: as real root it stays where it is; otherwise it becomes root of a user namespace, once.

Everything after that is one code path. This module also tells why a kernel says no, and what to do about it.
"""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from farcall.launcher import syscalls
from farcall.spec.container import IdMap

_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21
_CONTAINER_BASE = 100_000  # first host id of containers made by real root
_CONTAINER_IDS = 65_536
_PROCESS_RUNTIME = "or run without isolation: --runtime process"


class Place(NamedTuple):
    """What the launcher can do where it is."""

    rootless: bool
    uid_map: IdMap  # of containers
    gid_map: IdMap
    idmap_fd: int | None  # a user namespace with those maps, for idmapped mounts; None where they are not needed
    refusal: str | None  # why native containers are impossible here, and the remedy


def enter() -> Place:
    """Become able to make containers, if this kernel lets us. The caller must be single-threaded."""
    needed = 1 << _CAP_SETGID | 1 << _CAP_SETUID | 1 << _CAP_SYS_ADMIN
    if os.geteuid() == 0 and syscalls.capabilities() & needed == needed:
        return _as_root()
    return _as_user()


def _as_root() -> Place:
    uid_map, gid_map = id_maps()
    shifted = uid_map == ((0, _CONTAINER_BASE, _CONTAINER_IDS),)
    return Place(False, uid_map, gid_map, _user_namespace(uid_map) if shifted else None, None)


def id_maps() -> tuple[IdMap, IdMap]:
    """The ids of containers as they are seen from here, where the launcher is: those of users, and of groups."""
    if _is_mapped(_CONTAINER_BASE, _CONTAINER_IDS):
        id_map = ((0, _CONTAINER_BASE, _CONTAINER_IDS),)
        return id_map, id_map
    # Root of some user namespace (a rootless launcher's, say): containers map what there is, onto itself.
    return own_ids("uid"), own_ids("gid")


def join(launcher_pid: int) -> None:
    """Come to where the launcher is: for an ordinary user that is a user namespace, in which files of subordinate ids
    can be read and made. Another process of root's is there already. The caller must be single-threaded. Raises
    OSError.
    """
    ours, theirs = "/proc/self/ns/user", f"/proc/{launcher_pid}/ns/user"
    if os.stat(ours).st_ino == os.stat(theirs).st_ino:
        return
    namespaces = [os.open(f"/proc/{launcher_pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt")]
    for fd, kind in zip(namespaces, (syscalls.NEWUSER, syscalls.NEWNS), strict=True):
        syscalls.setns(fd, kind)
        os.close(fd)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _as_user() -> Place:
    refusal = _try_user_namespace()
    if refusal is not None:
        return Place(True, (), (), None, refusal)
    uid, gid = os.getuid(), os.getgid()
    ranges = _subordinate_ranges(uid, gid)
    ready, done = os.pipe()
    mapper = os.fork() if ranges else 0
    if ranges and mapper == 0:
        os.close(done)
        os.read(ready, 1)
        os._exit(_run_id_mappers(os.getppid(), uid, gid, *ranges))
    syscalls.unshare(syscalls.NEWUSER | syscalls.NEWNS)
    os.write(done, b"x")
    os.close(ready)
    os.close(done)
    mapped = bool(ranges) and os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1]) == 0
    if not mapped:
        _map_only_self(uid, gid)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    return Place(True, own_ids("uid"), own_ids("gid"), None, None)


def _try_user_namespace() -> str | None:
    """In a child, so that a half refusal leaves no trace in this process: what is refused, if anything."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        uid, gid = os.getuid(), os.getgid()
        step = "user namespace"
        try:
            syscalls.unshare(syscalls.NEWUSER)
            step = "id maps"
            _map_only_self(uid, gid)
            step = "namespaces"
            syscalls.unshare(syscalls.NEWNS | syscalls.NEWPID | syscalls.NEWNET | syscalls.NEWIPC | syscalls.NEWUTS)
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        except OSError as error:
            os.write(tell, f"{step}|{error.errno or 0}|{error.strerror}".encode())
        os._exit(0)
    os.close(tell)
    answer = os.read(told, 4096).decode()
    os.close(told)
    os.waitpid(pid, 0)
    if not answer:
        return None
    step, number, text = answer.split("|", 2)
    return explain(step, int(number), text)


def _map_only_self(uid: int, gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def _subordinate_ranges(uid: int, gid: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The user's first range in /etc/subuid and /etc/subgid, where both exist and the tools that apply them do."""
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return None
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    found: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                owner, first, count = line.split(":")
                if owner in (name, str(uid)):
                    found.append((int(first), min(int(count), _CONTAINER_IDS - 1)))
                    break
    return (found[0], found[1]) if len(found) == 2 else None


def _run_id_mappers(pid: int, uid: int, gid: int, uids: tuple[int, int], gids: tuple[int, int]) -> int:
    for tool, own, (first, count) in (("newuidmap", uid, uids), ("newgidmap", gid, gids)):
        command = [tool, str(pid), "0", str(own), "1", "1", str(first), str(count)]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:
            return 1
    return 0


def own_ids(kind: str) -> IdMap:
    """All ids of this user namespace, each onto itself."""
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    ranges = [(int(line.split()[0]), int(line.split()[2])) for line in lines]
    return tuple((first, first, count) for first, count in ranges)


def has_one_id(id_map: IdMap) -> bool:
    """Whether there is root and nobody else."""
    return sum(count for _, _, count in id_map) == 1


def _is_mapped(first: int, count: int) -> bool:
    return any(start <= first and first + count <= start + length for start, _, length in own_ids("uid"))


def _user_namespace(id_map: IdMap) -> int | None:
    """A descriptor of a user namespace with this map, which nothing runs in; None where the kernel refuses."""
    ready, tell = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        with contextlib.suppress(OSError):
            syscalls.unshare(syscalls.NEWUSER)
            os.write(tell, b"x")
            os.read(hold, 1)
        os._exit(0)
    os.close(tell)
    os.close(hold)
    try:
        if os.read(ready, 1) != b"x":
            return None
        lines = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in id_map)
        Path(f"/proc/{pid}/gid_map").write_text(lines)
        Path(f"/proc/{pid}/uid_map").write_text(lines)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(ready)
        os.close(release)
        os.waitpid(pid, 0)


def explain(step: str, number: int, text: str) -> str:
    """One line for a user: what was refused, the likely cause, and the remedy."""
    name = errno.errorcode.get(number, str(number))
    cause, remedy = _cause(number)
    return f"the container could not be made: {step}: {text} ({name}); {cause}; {remedy}, {_PROCESS_RUNTIME}"


def _cause(number: int) -> tuple[str, str]:
    def setting(path: str) -> str:
        try:
            return Path("/proc/sys", path).read_text().strip()
        except OSError:
            return ""

    if number == errno.ENOSYS:
        return "this kernel lacks the call (Linux 5.12 is needed)", "use a newer kernel"
    if number in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        if setting("user/max_user_namespaces") == "0":
            return "user namespaces are switched off", "sudo sysctl -w user.max_user_namespaces=15000"
        if setting("kernel/unprivileged_userns_clone") == "0":
            return "user namespaces are for root only here", "sudo sysctl -w kernel.unprivileged_userns_clone=1"
        if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "AppArmor restricts user namespaces (Ubuntu's default)",
                "install the profile that `farcall doctor` prints, "
                "or sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            )
        if number in (errno.ENOSPC, errno.EUSERS):
            return "a limit on namespaces is reached", "raise the sysctls user.max_*_namespaces"
        if "Seccomp:\t2" in Path("/proc/self/status").read_text():
            return (
                "a seccomp filter refuses namespaces (a container or rented pod)",
                "start that container with namespaces allowed (Docker: --privileged)",
            )
        return "this system refuses it", "see `farcall doctor`"
    if number == errno.EROFS:
        return "/proc is mounted read-only", "sudo mount -o remount,rw /proc"
    if number == errno.ENOMEM:
        return "memory is short", "free some memory"
    return "see the launcher's log", "see `farcall doctor`"
