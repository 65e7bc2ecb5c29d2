"""Runtime "process", the last resort: a plain child with limits, where no namespaces can be had. Not isolated.

A supervisor process stands where init stands in a container: a subreaper, so that all that the runner starts comes back
to it, and is killed, at the end. Landlock keeps writes inside the container's own area and reads to what a container
would see, and seccomp filters system calls, each where the kernel has it.
"""

import contextlib
import os
import signal
import sys
import time
from functools import partial
from typing import NoReturn

import msgspec

from farcall.launcher import init, sandbox, seccomp, syscalls
from farcall.launcher.area import SYSTEM, make_skeleton
from farcall.launcher.execs import Execs
from farcall.launcher.plan import Born, Plan, PlanFds
from farcall.launcher.stage import BindError
from farcall.spec.container import ContainerSpec

NOTE = "not isolated: runtime process shares this machine's processes, users and file system"
# In the environment of every process of such a container: how the launcher finds what outlived its supervisor.
MARK = "FARCALL_PROCESS_CONTAINER"

# Landlock's access bits: see landlock(7).
_LIST = 1 << 3  # read directory
_READ = 1 << 0 | 1 << 2 | _LIST  # execute, read file, and that
_ABI_1 = (1 << 13) - 1
_BY_ABI = {1: _ABI_1, 2: _ABI_1 | 1 << 13, 3: _ABI_1 | 1 << 13 | 1 << 14}
_ON_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the bits that a rule on a file may have
_READABLE = (*SYSTEM, "/etc", "/proc", "/sys", "/dev")
_WRITABLE = ("/dev", "/proc/self")


def make_container(plan: Plan, fds: PlanFds, enter_runner: init.RunnerEntry) -> NoReturn:
    """Become the supervisor of a container of this runtime, in a process just forked for it."""
    try:
        _supervise(plan, fds, enter_runner)
    except (OSError, BindError) as error:
        init.report(fds.status, init.StepError("process", error).report)
    except BaseException as error:
        init.report(fds.status, init.StepError("start", error).report)
    os._exit(1)


def _supervise(plan: Plan, fds: PlanFds, enter_runner: init.RunnerEntry) -> None:
    syscalls.close_all_but([2, *(fd for fd in fds if fd is not None and fd >= 0)])
    os.setsid()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    syscalls.set_process_name("farcall-init")
    syscalls.set_command_line(["farcall-init", plan.spec.container_id])
    pid = os.getpid()
    init.report(fds.status, Born(pid), [os.pidfd_open(pid)])
    init.join_cgroups(init.open_cgroups(plan.cgroup_v1, plan.cgroup_v2))
    timeline = {"init": time.monotonic()}
    notes = [NOTE]
    for bind in plan.spec.binds:
        if bind.source != bind.target and os.path.exists(bind.source):
            notes.append(f"runtime process cannot mount: {bind.source} is not at {bind.target}")
    root = plan.area + "/root"
    if not plan.area_made:
        make_skeleton(root, (os.getuid(), os.getgid()))
    inside = msgspec.structs.replace(plan, spec=_on_the_host(plan.spec, root))
    os.makedirs(inside.spec.cwd, exist_ok=True)
    if syscalls.landlock_abi() == 0:
        notes.append("this kernel has no Landlock: the host's files are as open as to any process of yours")

    def enter(spec: ContainerSpec) -> NoReturn:
        _confine(inside, root)
        enter_runner(spec)

    runner = init.start_runner(inside, fds, enter)
    timeline["runner"] = time.monotonic()

    def prepare() -> None:
        init.limit_resources(inside)
        _confine(inside, root)

    execs = Execs(inside.spec, init.runner_environment(inside.spec), partial(init.report, fds.status), prepare)
    init.supervise(fds.status, runner, timeline, notes, execs, end=_kill_descendants)


def _on_the_host(spec: ContainerSpec, root: str) -> ContainerSpec:
    cwd = root + spec.cwd
    for bind in spec.binds:
        if spec.cwd == bind.target or spec.cwd.startswith(bind.target.rstrip("/") + "/"):
            cwd = bind.source + spec.cwd[len(bind.target.rstrip("/")) :]
    environment = {"HOME": f"{root}/root", "TMPDIR": f"{root}/tmp", **spec.env, MARK: spec.container_id}
    return msgspec.structs.replace(spec, cwd=cwd, env=environment)


def _confine(plan: Plan, root: str) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):  # an ordinary user has none to drop
        syscalls.keep_capabilities(sandbox.KEPT_CAPABILITIES)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _restrict_files(plan, root)
    try:
        seccomp.install(plan.seccomp)
    except OSError as error:
        if plan.spec.block_network:
            message = "block_network: runtime process blocks by seccomp, which is refused here"
            raise OSError(error.errno, message) from None


def _restrict_files(plan: Plan, root: str) -> None:
    abi = syscalls.landlock_abi()
    if abi == 0:
        return
    handled = _BY_ABI[min(abi, 3)]
    ruleset = syscalls.landlock_create(handled)
    spec = plan.spec
    assert spec.interpreter is not None  # see `unsupported`
    readable = [*_READABLE, *spec.interpreter.paths, spec.interpreter.runner_path, os.path.realpath("/etc/resolv.conf")]
    writable = [root, *_WRITABLE]
    for bind in spec.binds:
        (readable if bind.read_only else writable).append(bind.source)
    # Python lists a folder before it imports from it: names may be read there, not files.
    listable = [os.path.dirname(bind.source) for bind in spec.binds]
    for paths, access in ((readable, _READ), (listable, _LIST), (writable, handled)):
        for path in paths:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                syscalls.landlock_allow(ruleset, fd, (access if os.path.isdir(path) else access & _ON_FILES) & handled)
                os.close(fd)
    syscalls.landlock_restrict(ruleset)
    os.close(ruleset)


def _kill_descendants() -> None:
    """Kill until no child is left: what a killed child leaves behind becomes a child of this subreaper."""
    me = os.getpid()
    while True:
        for pid, parent in _processes():
            if parent == me:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _processes() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                found.append((int(name), int(file.read().rpartition(b")")[2].split()[1])))
    return found


def kill_outliving(container_id: str) -> list[int]:
    """From the launcher, once a supervisor is gone: kill what the container left, known by its environment.

    Returns the pids. One in the middle of an exec shows no environment: only a second empty answer, some milliseconds
    later, means that nothing is left.
    """
    mark = f"{MARK}={container_id}\0".encode()
    killed: list[int] = []
    for pid, _ in _processes():
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mark in file.read() + b"\0":
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        killed.append(pid)
            finally:
                os.close(pidfd)
    return killed


def unsupported(spec: ContainerSpec) -> str | None:
    """Why this runtime cannot honour the spec on this machine, if it cannot."""
    if spec.block_network and syscalls.machine() not in ("x86_64", "aarch64"):
        return f"runtime process cannot block the network on {syscalls.machine()} ({sys.platform}): no seccomp filter"
    if any(tree.writable for tree in spec.trees):
        return "runtime process mounts nothing, and so no volume"
    return None
