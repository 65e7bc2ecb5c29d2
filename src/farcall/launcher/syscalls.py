"""The Linux system calls that Python's standard library lacks, each a function that raises `OSError`."""

import ctypes
import os
import platform
import signal
import struct
import sys
from typing import Any

NEWTIME = 0x80
NEWNS = 0x20000
NEWCGROUP = 0x2000000
NEWUTS = 0x4000000
NEWIPC = 0x8000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of the kernel

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_O_CLOEXEC = 0o2000000
_MOVE_MOUNT_F_EMPTY_PATH = 4

# Calls newer than 2019 have one number on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_SYS_CACHESTAT = 451
# The older ones are looked up by machine.
_SYS_BY_MACHINE = {
    "x86_64": {"pivot_root": 155, "capset": 126},
    "aarch64": {"pivot_root": 41, "capset": 91},
}

_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# Calls through this one keep the interpreter's lock.
_process: Any = ctypes.PyDLL(None, use_errno=True)
_process.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _syscall(what: str, number: int, *arguments: Any) -> int:
    # Plain Python ints would be passed as C int; a 64-bit register needs the width spelled out.
    widened = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *widened), what)


def machine() -> str:
    """The architecture, "x86_64" or "aarch64" where farcall makes containers."""
    return platform.machine()


def _number(name: str) -> int:
    return _SYS_BY_MACHINE[machine()][name]


def unshare(flags: int) -> None:
    """Move the caller into new namespaces (NEWPID: its future children)."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def fork_into_cgroup(directory: int) -> int:
    """As os.fork in a process with one thread, with the child born in the v2 cgroup that descriptor `directory` is.

    The C library does not hear of it: in the child (not in what it forks) raise(3) and abort(3) miss their thread.
    """
    fields = [_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory]
    arguments = ctypes.create_string_buffer(struct.pack("<11Q", *fields), 88)
    _process.PyOS_BeforeFork()
    pid = _process.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_size_t(88))
    if pid == 0:
        _process.PyOS_AfterFork_Child()
    else:
        _process.PyOS_AfterFork_Parent()
    return _check(pid, "clone3 into a cgroup")


def cached_pages(fd: int) -> int:
    """How many pages of a file are in the page cache; brings none there. ENOSYS before Linux 6.5."""
    whole = ctypes.create_string_buffer(16)  # from 0, to its end
    counts = ctypes.create_string_buffer(40)
    _syscall("cachestat", _SYS_CACHESTAT, fd, whole, counts, 0)
    return int.from_bytes(counts[:8], sys.byteorder)


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` refers to; `kind` is one NEW* flag."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, filesystem: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            filesystem.encode() if filesystem else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {filesystem or source} on {target}",
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2); by default lazily."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"unmount {target}")


def open_tree(path: str, *, recursive: bool = True) -> int:
    """A detached copy of the mount at `path` (with the mounts below it), as a descriptor."""
    flags = _OPEN_TREE_CLONE | _O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall(f"open_tree {path}", _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def is_initial_user_namespace() -> bool:
    """Whether this process is in the system's own user namespace, in which all file systems can be mounted."""
    return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE


def mount_setattr(fd: int, attributes: int, *, userns_fd: int | None = None, recursive: bool = True) -> None:
    """Add attributes to the detached mount `fd`; with MOUNT_ATTR_IDMAP, by the map of `userns_fd`."""
    packed = ctypes.create_string_buffer(struct.pack("<QQQQ", attributes, 0, 0, userns_fd or 0), 32)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _syscall("mount_setattr", _SYS_MOUNT_SETATTR, fd, b"", flags, packed, 32)


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount `fd` at `target`."""
    _syscall(
        f"move_mount to {target}",
        _SYS_MOVE_MOUNT,
        fd,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _syscall("pivot_root", _number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old))


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close all descriptors from `first` to `last`, both included."""
    if first > last:
        return
    try:
        _syscall("close_range", _SYS_CLOSE_RANGE, first, last, 0)
    except OSError:  # Linux < 5.9, or a seccomp filter that does not know the call
        for name in os.listdir("/proc/self/fd"):
            if first <= int(name) <= last:
                try:
                    os.close(int(name))
                except OSError:  # the descriptor of the listing itself
                    pass


def close_all_but(keep: list[int]) -> None:
    """Close all descriptors but those in `keep`."""
    at = 0
    for fd in sorted(set(keep)):
        close_range(at, fd - 1)
        at = fd + 1
    close_range(at)


def sethostname(name: str) -> None:
    """Set the host name of the UTS namespace."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def prctl(option: int, argument: Any = 0, second: Any = 0) -> None:
    """prctl(2) with one or two arguments."""
    values = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (argument, second)]
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), *values, zero, zero), f"prctl({option})")


def set_process_name(name: str) -> None:
    """What ps shows for this process (at most 15 bytes)."""
    prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def set_command_line(arguments: list[str]) -> None:
    """What ps and /proc/PID/cmdline show for this process, cut to the room that its first command line took."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, which proc(5) numbers 48 and 49
    if start and end > start:
        text = b"\0".join(os.fsencode(argument) for argument in arguments)[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def keep_capabilities(keep: frozenset[int]) -> None:
    """Drop all capabilities but `keep`, from the bounding set too, for good."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        if capability not in keep:
            prctl(PR_CAPBSET_DROP, capability)
    set_capabilities(keep)


def set_capabilities(keep: frozenset[int]) -> None:
    """Make `keep` the permitted and effective set and empty the inheritable one."""
    mask = sum(1 << capability for capability in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("<6I", low, low, 0, high, high, 0), 24)
    _syscall("capset", _number("capset"), header, data)


def capabilities() -> int:
    """The caller's effective capabilities as a bit mask."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where it has none."""
    try:
        return _syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, ctypes.c_void_p(0), 0, 1)
    except OSError:
        return 0


def landlock_create(handled_filesystem: int) -> int:
    """A ruleset that denies the given filesystem accesses unless a rule allows them."""
    attribute = ctypes.create_string_buffer(struct.pack("<Q", handled_filesystem), 8)
    return _syscall("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, attribute, 8, 0)


def landlock_allow(ruleset: int, path_fd: int, access: int) -> None:
    """Allow `access` below the file or directory `path_fd`."""
    rule = ctypes.create_string_buffer(struct.pack("<Qi", access, path_fd), 12)
    _syscall("landlock_add_rule", _SYS_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    """Put the caller, and all it forks, under the ruleset. Needs no_new_privs."""
    _syscall("landlock_restrict_self", _SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
