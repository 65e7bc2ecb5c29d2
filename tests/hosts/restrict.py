"""Runs a command as on a machine that lacks something: `restrict.py KIND [ARGUMENT] -- COMMAND ...`.

    refuse-namespaces  seccomp refuses unshare, setns, mounts and clone with namespaces (a rented pod, Docker's default)
    lacks WHAT ...     the kernel knows no "overlay", "erofs" or another filesystem (mount and fsopen answer ENODEV), or
                       cannot mount any with other ids ("idmap": mount_setattr answers EINVAL)
    no-cgroup          all cgroup hierarchies are read-only
    readonly-proc      /proc is read-only
    home-mount DIR     DIR is a filesystem of its own, and empty
    user UID           an ordinary user, in no other group

The restriction holds for the command and all it starts. Needs nothing but Python. Those that mount need root or user
namespaces. `lacks` stays to answer for the kernel, so what outlives the command must not mount any more.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

MACHINES = {
    # name: (audit architecture, numbers of the calls that differ)
    "x86_64": (0xC000003E, {"clone": 56, "mount": 165, "unshare": 272, "setns": 308, "seccomp": 317}),
    "aarch64": (0xC00000B7, {"clone": 220, "mount": 40, "unshare": 97, "setns": 268, "seccomp": 277}),
}
OPEN_TREE, MOVE_MOUNT, FSOPEN, CLONE3, MOUNT_SETATTR = 428, 429, 430, 435, 442
MOUNT_ATTR_IDMAP = 0x100000
NAMESPACES = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x80
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
NOTIF_RECV, NOTIF_SEND, FLAG_CONTINUE = 0xC0502100, 0xC0182101, 1
LOAD, AND, EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # BPF: load a word, and, jump if equal, return

libc = ctypes.CDLL(None, use_errno=True)
Instruction = tuple[int, int, int, int]


def number(call: str) -> int:
    return MACHINES[platform.machine()][1][call]


def check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def answer(call: int, action: int) -> list[Instruction]:
    """The accumulator holds the call's number: if it is `call`, this is the verdict."""
    return [(EQUAL, 0, 1, call), (RETURN, 0, 0, action)]


def prologue() -> list[Instruction]:
    """Lets other architectures' calls pass, and loads the call's number."""
    architecture = MACHINES[platform.machine()][0]
    return [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0)]


def install(program: Sequence[Instruction], flags: int = 0) -> int:
    """Puts this process under the filter, for good. Returns the listener's descriptor where `flags` ask for one."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    arguments = (ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(flags), header)
    return check(libc.syscall(ctypes.c_long(number("seccomp")), *arguments), "seccomp")


def refuse_namespaces() -> None:
    refused = ERRNO | errno.EPERM
    program = prologue() + answer(CLONE3, ERRNO | errno.ENOSYS)
    for call in (number("unshare"), number("setns"), number("mount"), OPEN_TREE, MOVE_MOUNT, FSOPEN):
        program += answer(call, refused)
    # clone: its first argument holds the flags on both machines
    program += [(EQUAL, 0, 4, number("clone")), (LOAD, 0, 0, 16), (AND, 0, 0, NAMESPACES), (EQUAL, 1, 0, 0)]
    program += [(RETURN, 0, 0, refused), (RETURN, 0, 0, ALLOW)]
    install(program)


def refuse_mounts(lacking: Sequence[str]) -> None:
    """Refuses to mount these filesystems; "idmap", to map ids of any.

    Returns in a child that is under the filter; this process stays to decide its mounts, and ends as the child.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        program = prologue()
        for call in (number("mount"), FSOPEN, MOUNT_SETATTR):
            program += answer(call, NOTIFY)
        listener = install([*program, (RETURN, 0, 0, ALLOW)], SECCOMP_FILTER_FLAG_NEW_LISTENER)
        socket.send_fds(theirs, [b"1"], [listener])
        os.close(listener)
        return
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.pidfd_open(pid)
    while True:
        readable, _, _ = select.select([*descriptors, child], [], [])
        if child in readable:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        for listener in descriptors:
            with suppress(OSError):  # the caller may die at any time
                decide(listener, lacking)


def decide(listener: int, lacking: Sequence[str]) -> None:
    request = bytearray(80)
    fcntl.ioctl(listener, NOTIF_RECV, request)
    identity, pid = struct.unpack_from("=QI", request)
    call, _, _, *arguments = struct.unpack_from("=iIQ6Q", request, 16)
    verdict = (0, 0, FLAG_CONTINUE)
    if call == MOUNT_SETATTR:
        flags = int.from_bytes(read(pid, arguments[3]), sys.byteorder)
        if "idmap" in lacking and flags & MOUNT_ATTR_IDMAP:
            verdict = (0, -errno.EINVAL, 0)
    else:
        where = arguments[0] if call == FSOPEN else arguments[2]
        if where != 0 and read(pid, where).split(b"\0")[0].decode() in lacking:
            verdict = (0, -errno.ENODEV, 0)
    fcntl.ioctl(listener, NOTIF_SEND, bytearray(struct.pack("=QqiI", identity, *verdict)))


def read(pid: int, address: int) -> bytes:
    """The eight bytes there: a filesystem's name, or flags."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(8)


def mount(source: str, target: str, filesystem: str | None, flags: int, data: str | None = None) -> None:
    packed = [text.encode() if text is not None else None for text in (source, target, filesystem)]
    result = libc.mount(*packed, ctypes.c_ulong(flags), data.encode() if data else None)
    check(result, f"mount {target}")


def own_mounts() -> None:
    """A mount namespace of its own; without root, in a user namespace that changes nothing else."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        check(libc.unshare(CLONE_NEWNS), "unshare")
    else:
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER), "unshare")
        for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def make_read_only(target: str) -> None:
    mount(target, target, None, MS_BIND | MS_REC)
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def mount_points(*filesystems: str) -> list[str]:
    with open("/proc/self/mountinfo") as stream:
        lines = [line.partition(" - ") for line in stream]
    return [before.split()[4] for before, _, after in lines if after.split()[0] in filesystems]


def become_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    kind, *rest = sys.argv[1:]
    split = rest.index("--")
    arguments, command = rest[:split], rest[split + 1 :]
    program = shutil.which(command[0]) or command[0]  # here: the restricted may not be able to read Python's library
    match kind, arguments:
        case "refuse-namespaces", []:
            refuse_namespaces()
        case "lacks", [_, *_]:
            refuse_mounts(arguments)
        case "no-cgroup", []:
            own_mounts()
            for target in mount_points("cgroup", "cgroup2"):
                make_read_only(target)
        case "readonly-proc", []:
            own_mounts()
            make_read_only("/proc")
        case "home-mount", [directory]:
            own_mounts()
            mount("none", directory, "tmpfs", 0, "mode=0755")
        case "user", [uid]:
            become_user(int(uid))
        case _:
            sys.exit(__doc__)
    os.execv(program, command)


if __name__ == "__main__":
    main()
