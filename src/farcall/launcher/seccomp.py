"""The system call filter of a container, assembled here as classic BPF.

In the spirit of Docker's default profile, as a denylist: what makes namespaces, mounts, loads code into the kernel,
traces or reaches around the container's walls answers EPERM. Threads, multiprocessing and subprocesses work as ever.
"""

import ctypes
import struct
from typing import NamedTuple

from farcall.launcher import syscalls

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the architecture lacks the call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # Mounts and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # The kernel itself.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "query_module": (178, None),
    "get_kernel_syms": (177, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "_sysctl": (156, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # Keys are not namespaced.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
}
# What changes owners, and who a process is. Where there is one user only, none of them can do anything, and programs
# that install packages give up.
_OWNERS: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_IOCTL = {"x86_64": 16, "aarch64": 29}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE3 = 435
_X32_BIT = 0x40000000
_NAMESPACES = (
    syscalls.NEWNS
    | syscalls.NEWCGROUP
    | syscalls.NEWUTS
    | syscalls.NEWIPC
    | syscalls.NEWUSER
    | syscalls.NEWPID
    | syscalls.NEWNET
)
_TIOCSTI = 0x5412  # types into a terminal for its owner
_TIOCLINUX = 0x541C
_AF_UNIX = 1

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_EPERM, _ENOSYS, _EACCES = 1, 38, 13

_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENT = 0, 4, 16

_SECCOMP_MODE_FILTER = 2


class _Instruction(NamedTuple):
    code: int
    value: int
    if_true: str | None = None  # a label; None goes on with the next instruction
    if_false: str | None = None


class _Program:
    """A list of instructions whose jumps are labels until it is assembled."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._instructions)

    def load(self, offset: int) -> None:
        self._instructions.append(_Instruction(_LOAD, offset))

    def jump(self, code: int, value: int, if_true: str | None, if_false: str | None = None) -> None:
        self._instructions.append(_Instruction(code, value, if_true, if_false))

    def answer(self, label: str, action: int) -> None:
        self.label(label)
        self._instructions.append(_Instruction(_RETURN, action))

    def assemble(self) -> bytes:
        out = bytearray()
        for at, instruction in enumerate(self._instructions):

            def offset(label: str | None, at: int = at) -> int:
                return 0 if label is None else self._labels[label] - at - 1

            out += struct.pack(
                "<HBBI", instruction.code, offset(instruction.if_true), offset(instruction.if_false), instruction.value
            )
        return bytes(out)


def assemble(machine: str, *, unix_sockets_only: bool = False, root_owns_all: bool = False) -> bytes:
    """The filter for one architecture as an array of `struct sock_filter`.

    `unix_sockets_only` lets socket(2) make nothing but Unix sockets (EACCES): a network block without a namespace.
    With `root_owns_all` changes of owners and users succeed and change nothing: see `owners_kept`.
    """
    column = 0 if machine == "x86_64" else 1
    program = _Program()
    program.load(_OFFSET_ARCH)
    program.jump(_JUMP_EQUAL, _AUDIT_ARCH[machine], None, "deny")
    program.load(_OFFSET_NUMBER)
    if machine == "x86_64":
        program.jump(_JUMP_AT_LEAST, _X32_BIT, "deny")
    # clone3's flags are behind a pointer, out of a filter's reach; glibc falls back to clone when it answers ENOSYS.
    program.jump(_JUMP_EQUAL, _CLONE3, "absent")
    program.jump(_JUMP_EQUAL, _CLONE[machine], "clone")
    program.jump(_JUMP_EQUAL, _UNSHARE[machine], "unshare")
    program.jump(_JUMP_EQUAL, _IOCTL[machine], "ioctl")
    if unix_sockets_only:
        program.jump(_JUMP_EQUAL, _SOCKET[machine], "socket")
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            program.jump(_JUMP_EQUAL, number, "deny")
    if root_owns_all:
        _pretend(program, column)
    program.answer("allow", _RET_ALLOW)
    # Jumps only go forward, so each block ends in answers of its own.
    program.label("clone")
    program.load(_OFFSET_ARGUMENT)
    program.jump(_JUMP_ANY_BIT, _NAMESPACES, "deny", "allow2")
    program.label("unshare")
    program.load(_OFFSET_ARGUMENT)
    program.jump(_JUMP_ANY_BIT, _NAMESPACES | syscalls.NEWTIME, "deny", "allow2")
    program.label("ioctl")
    program.load(_OFFSET_ARGUMENT + 8)
    program.jump(_JUMP_EQUAL, _TIOCSTI, "deny")
    program.jump(_JUMP_EQUAL, _TIOCLINUX, "deny", "allow2")
    if unix_sockets_only:
        program.label("socket")
        program.load(_OFFSET_ARGUMENT)
        program.jump(_JUMP_EQUAL, _AF_UNIX, "allow2", "no access")
        program.answer("no access", _RET_ERRNO | _EACCES)
    program.answer("allow2", _RET_ALLOW)
    program.answer("deny", _RET_ERRNO | _EPERM)
    program.answer("absent", _RET_ERRNO | _ENOSYS)
    if root_owns_all:
        program.answer("done", _RET_ERRNO)
    return program.assemble()


def owners_kept(machine: str) -> bytes:
    """A filter under which calls that change owners and users succeed and change nothing, and all others do what they
    do: for packages that are unpacked where all files can belong to one user only."""
    column = 0 if machine == "x86_64" else 1
    program = _Program()
    program.load(_OFFSET_ARCH)
    program.jump(_JUMP_EQUAL, _AUDIT_ARCH[machine], None, "other")
    program.load(_OFFSET_NUMBER)
    _pretend(program, column)
    program.answer("other", _RET_ALLOW)
    program.answer("done", _RET_ERRNO)
    return program.assemble()


def _pretend(program: _Program, column: int) -> None:
    for numbers in _OWNERS.values():
        number = numbers[column]
        if number is not None:
            program.jump(_JUMP_EQUAL, number, "done")


def install(program: bytes) -> None:
    """Put the caller, and all it forks, under the filter. Needs no_new_privs.

    Raises OSError where the kernel has no seccomp filters.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code)), 16)
    syscalls.prctl(syscalls.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)
