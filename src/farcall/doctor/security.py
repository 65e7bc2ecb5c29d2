"""What confines code further, and how processes and memory are referred to."""

import ctypes
import fcntl
import os

from farcall.doctor.finding import Finding
from farcall.doctor.setting import as_root, setting
from farcall.doctor.trial import attempt
from farcall.launcher import syscalls

GROUP = "Kernel"
_NUMBERS = {"x86_64": {"seccomp": 317, "userfaultfd": 323}, "aarch64": {"seccomp": 277, "userfaultfd": 282}}
_SECCOMP_GET_ACTION_AVAIL = 2
_SECCOMP_RET_ERRNO, _SECCOMP_RET_USER_NOTIF = 0x00050000, 0x7FC00000
_UFFD_USER_MODE_ONLY = 1


def probe() -> list[Finding]:
    """Seccomp, Landlock, pidfds, sealed memory, userfaultfd."""
    return [_seccomp(), _landlock(), _pidfd(), _memfd(), _userfaultfd()]


def _syscall(name: str, *arguments: object) -> int:
    numbers = _NUMBERS.get(syscalls.machine())
    if numbers is None:
        raise OSError(f"not known for {syscalls.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(numbers[name]), *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _seccomp() -> Finding:
    purpose = "refuses system calls that containers do not need"

    def available(action: int) -> None:
        wanted = ctypes.c_uint32(action)
        _syscall("seccomp", ctypes.c_long(_SECCOMP_GET_ACTION_AVAIL), ctypes.c_long(0), ctypes.byref(wanted))

    filters = attempt(lambda: available(_SECCOMP_RET_ERRNO))
    if not filters.ok:
        return Finding(GROUP, "seccomp", "missing", purpose, filters.text, "use a kernel with CONFIG_SECCOMP_FILTER")
    notify = attempt(lambda: available(_SECCOMP_RET_USER_NOTIF))
    if not notify.ok:
        return Finding(GROUP, "seccomp", "limited", purpose, "no user notification", "use Linux 5.0 or newer")
    return Finding(GROUP, "seccomp", "ok", purpose, "filters and user notification")


def _landlock() -> Finding:
    purpose = "keeps `--runtime process` to its own files"
    abi = attempt(lambda: str(syscalls.landlock_abi()))
    if abi.ok and abi.text != "0":
        return Finding(GROUP, "Landlock", "ok", purpose, f"ABI {abi.text}")
    remedy = "add landlock to the kernel's lsm= boot parameter (Linux 5.13 or newer)"
    return Finding(GROUP, "Landlock", "missing", purpose, "not enabled in this kernel", remedy)


def _pidfd() -> Finding:
    trial = attempt(lambda: os.close(os.pidfd_open(os.getpid())))
    status = "ok" if trial.ok else "missing"
    remedy = "" if trial.ok else "use Linux 5.3 or newer"
    return Finding(GROUP, "pidfd", status, "signals that cannot hit another process", trial.text, remedy, required=True)


def _memfd() -> Finding:
    def seal() -> None:
        descriptor = os.memfd_create("farcall-doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)

    trial = attempt(seal)
    status = "ok" if trial.ok else "missing"
    remedy = "" if trial.ok else "use a kernel with CONFIG_MEMFD_CREATE"
    purpose = "large values without copies"
    return Finding(GROUP, "sealed memfd", status, purpose, trial.text, remedy)


def _userfaultfd() -> Finding:
    purpose = "snapshots of memory that load as they are used"
    trial = attempt(lambda: os.close(_syscall("userfaultfd", ctypes.c_long(os.O_CLOEXEC))))
    if trial.ok:
        return Finding(GROUP, "userfaultfd", "ok", purpose)
    if attempt(lambda: os.close(_syscall("userfaultfd", ctypes.c_long(os.O_CLOEXEC | _UFFD_USER_MODE_ONLY)))).ok:
        remedy = as_root("sysctl -w vm.unprivileged_userfaultfd=1")
        return Finding(GROUP, "userfaultfd", "limited", purpose, "faults in user mode only", remedy)
    remedy = as_root("sysctl -w vm.unprivileged_userfaultfd=1") if setting("vm.unprivileged_userfaultfd") == "0" else ""
    return Finding(GROUP, "userfaultfd", "missing", purpose, trial.text, remedy)
