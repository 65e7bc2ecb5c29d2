"""Namespaces: what containers are made of."""

import errno
import os
from collections.abc import Callable

from farcall.doctor import apparmor
from farcall.doctor.finding import Finding
from farcall.doctor.setting import as_root, setting
from farcall.doctor.trial import Trial, attempt, enter_mount_namespace, enter_user_namespace, is_privileged
from farcall.launcher import syscalls

GROUP = "Containers"
_KINDS = (
    ("mount", syscalls.NEWNS, "a container's own files"),
    ("pid", syscalls.NEWPID, "a container sees its own processes only, and ends as a whole"),
    ("net", syscalls.NEWNET, "a container's own network"),
    ("ipc", syscalls.NEWIPC, "a container's own shared memory"),
    ("uts", syscalls.NEWUTS, "a container's own host name"),
    ("cgroup", syscalls.NEWCGROUP, "a container sees its own limits only"),
)


def probe() -> list[Finding]:
    """User namespaces, and every other kind really entered: from a user namespace, unless this is root."""
    user = _user()
    explained = user.status == "missing"
    others = [_other(name, flag, purpose, explained) for name, flag, purpose in _KINDS]
    return [user, *others, _subordinate_ids()]


def _user() -> Finding:
    # Ubuntu lets everybody make one and takes the capabilities away in it: only using one tells.
    trial = attempt(lambda: enter_mount_namespace(in_user_namespace=True))
    purpose = "containers without root, and root in a container that is nobody outside of it"
    if trial.ok:
        most = setting("user.max_user_namespaces")
        return Finding(GROUP, "user namespaces", "ok", purpose, f"at most {most}" if most else "", required=True)
    detail, remedy = refusal(trial, setting, root=os.geteuid() == 0)
    return Finding(GROUP, "user namespaces", "missing", purpose, detail, remedy, required=True)


def refusal(trial: Trial, setting: Callable[[str], str], *, root: bool) -> tuple[str, str]:
    """Why user namespaces are refused, from the kernel's answer and settings; and the line that allows them."""
    if trial.errno == errno.EROFS:
        return "/proc is read-only", as_root("mount -o remount,rw /proc")
    if setting("user.max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", as_root("sysctl -w user.max_user_namespaces=15000")
    if not root and setting("kernel.unprivileged_userns_clone") == "0":
        return "for root only here", as_root("sysctl -w kernel.unprivileged_userns_clone=1")
    if not root and setting("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return "restricted by AppArmor (Ubuntu's default)", apparmor.INSTALL
    return trial.text, _elsewhere()


def _elsewhere() -> str:
    with open("/proc/self/status") as stream:
        if "Seccomp:\t2" in stream.read():
            return "start the container that this is with --privileged, or run with --runtime process"
    return "run with --runtime process"


def _other(name: str, flag: int, purpose: str, explained: bool) -> Finding:
    """`explained` says that the remedy stands at the user namespaces already, for this kind too."""

    def enter() -> None:
        if not is_privileged():
            enter_user_namespace()
        syscalls.unshare(flag)

    trial = attempt(enter)
    limit = f"user.max_{'mnt' if name == 'mount' else name}_namespaces"
    required = name != "cgroup"
    if trial.ok:
        return Finding(GROUP, f"{name} namespaces", "ok", purpose, required=required)
    remedy = "" if explained else _elsewhere()
    if setting(limit) == "0":
        remedy = as_root(f"sysctl -w {limit}=15000")
    return Finding(GROUP, f"{name} namespaces", "missing", purpose, trial.text, remedy, required)


def _subordinate_ids() -> Finding:
    purpose = "more than one user in a container without root (apt in image builds)"
    name = "subordinate ids"
    if os.geteuid() == 0:
        return Finding(GROUP, name, "ok", purpose, "root needs none")
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path) as stream:
                owners = {line.split(":")[0] for line in stream}
        except OSError:
            owners = set[str]()
        if not owners & {user, str(os.getuid())}:
            line = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            return Finding(GROUP, name, "missing", purpose, f"{path} has none for {user}", line)
    return Finding(GROUP, name, "ok", purpose)
