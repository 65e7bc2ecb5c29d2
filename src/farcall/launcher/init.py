"""From a fork to a running container: the intermediate process, pid 1, and the start of the runner.

    launcher or template ──fork──▶ intermediate ──fork into a new pid namespace──▶ init ──fork──▶ runner (pid 2)

The intermediate stays outside just long enough to do what needs a process outside: it maps init's user ids, and has the
names of an image read that are not in memory yet. Then it ends, and the launcher, a subreaper, is init's parent.
Init is forked, never exec'd, so that it shares nearly all its memory.
"""

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from farcall.launcher import command, descriptors, sandbox, seccomp, syscalls, warming
from farcall.launcher.execs import Execs
from farcall.launcher.plan import (
    Born,
    Broken,
    Ended,
    Plan,
    PlanFds,
    Report,
    Running,
    SendSignal,
    SignalExec,
    StartExec,
    decode_order,
    encode,
)
from farcall.launcher.stage import BindError
from farcall.spec.container import ContainerSpec

MAX_REPORT = 64 * 1024  # bytes, of an order too
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
ROOT_STEP = "root file system"
# What the intermediate says to init, and init to it, one byte each.
_MAPPED, _ENTERED = b"m", b"u"

RunnerEntry = Callable[[ContainerSpec], NoReturn]


class StepError(Exception):
    """A step of making a container failed; carries what `Broken` reports."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(str(error))
        number, text = 0, str(error)
        if isinstance(error, OSError):
            number, text = error.errno or 0, error.strerror or text
            text += f": {error.filename}" if error.filename else ""
        self.report = Broken(step, number, text)


def report(status: int, message: Report, fds: list[int] | None = None) -> None:
    """Send a report to the launcher; a launcher that is gone is no error here."""
    with socket.socket(fileno=os.dup(status)) as channel, contextlib.suppress(OSError):
        descriptors.send(channel, encode(message), fds or [])


def make_container(plan: Plan, fds: PlanFds, enter_runner: RunnerEntry) -> NoReturn:
    """Become the intermediate of a container, in a process just forked for it.

    `enter_runner` runs in the runner and must not return: it execs, or calls the runner's main function.
    All failures are reported through `fds.status`.
    """
    try:
        _intermediate(plan, fds, enter_runner)
    except StepError as error:
        report(fds.status, error.report)
    except BaseException as error:
        report(fds.status, StepError("start", error).report)
    os._exit(1)


def _intermediate(plan: Plan, fds: PlanFds, enter_runner: RunnerEntry) -> None:
    gc.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    syscalls.close_all_but([0, 1, 2, *(fd for fd in fds if fd is not None and fd >= 0)])
    cold = warming.begin(plan.spec.root)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if cold else -1
    try:
        syscalls.unshare(syscalls.NEWPID)
    except OSError as error:
        raise StepError("pid namespace", error) from error
    ours, inits = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, v2 = _fork_init(plan)
    if pid == 0:
        ours.close()
        _init(plan, fds, enter_runner, inits, v2)
    inits.close()
    pidfd = os.pidfd_open(pid)
    report(fds.status, Born(pid), [pidfd])
    if ours.recv(1) == _ENTERED:
        try:
            sandbox.write_id_maps(pid, plan)
        except OSError as error:
            raise StepError("id maps", error) from error
        ours.send(_MAPPED)
        if cold:
            syscalls.setns(home, syscalls.NEWPID)  # a process whose children go elsewhere can have no threads
            syscalls.close_range(0)  # the container's streams end with the container
            warming.read_folders(cold)
    os._exit(0)


def _fork_init(plan: Plan) -> tuple[int, str | None]:
    """As os.fork; with it, the v2 cgroup that the child still has to join."""
    if plan.cgroup_v2 is None:
        return os.fork(), None
    # Moving a whole process waits for the kernel, some 10 ms; being born somewhere does not.
    try:
        directory = os.open(plan.cgroup_v2, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.fork_into_cgroup(directory), None
        finally:
            os.close(directory)
    except OSError:  # Linux < 5.7, or a seccomp filter that does not know the call
        return os.fork(), plan.cgroup_v2


def open_cgroups(v1: list[str], v2: str | None) -> dict[str, int]:
    """What `join_cgroups` takes, descriptors by file, to be opened while these directories are in sight."""
    files = [f"{directory}/tasks" for directory in v1] + ([f"{v2}/cgroup.procs"] if v2 else [])
    return {file: os.open(file, os.O_WRONLY | os.O_CLOEXEC) for file in files}


def join_cgroups(files: dict[str, int]) -> None:
    """Move this process, which has one thread, into cgroups; closes the descriptors. Raises OSError.

    Since Linux 5.5 v1 lets a thread move itself ("0" into `tasks`) at once. Any other move, and every one of v2's,
    waits until all other processors have seen that a process is being moved: some 10 ms.
    """
    for file, fd in files.items():
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise OSError(error.errno, error.strerror, file) from None
        finally:
            os.close(fd)


def _init(plan: Plan, fds: PlanFds, enter_runner: RunnerEntry, outside: socket.socket, v2: str | None) -> NoReturn:
    try:
        ahead = warming.paths(plan.spec.imports)  # which is out of sight later
        runner, timeline, notes = _build(plan, fds, enter_runner, outside, v2)
    except StepError as error:
        report(fds.status, error.report)
        os._exit(1)
    except BaseException as error:
        report(fds.status, StepError("start", error).report)
        os._exit(1)
    execs = Execs(plan.spec, runner_environment(plan.spec), partial(report, fds.status), partial(limit_resources, plan))
    supervise(fds.status, runner, timeline, notes, execs, ahead=ahead)


def _build(
    plan: Plan, fds: PlanFds, enter_runner: RunnerEntry, outside: socket.socket, v2: str | None
) -> tuple[int, dict[str, float], list[str]]:
    timeline = {"init": time.monotonic()}
    step = "cgroups"

    def mark(name: str) -> None:
        timeline[name] = time.monotonic()

    try:
        cgroup_files = open_cgroups(plan.cgroup_v1, v2)
        step = "namespaces"
        os.setsid()
        syscalls.set_process_name("farcall-init")
        syscalls.set_command_line(["farcall-init"])
        sandbox.enter_namespaces(plan, fds.netns)
        mark(step)
        step = ROOT_STEP
        notes = sandbox.make_root(plan, fds.idmap)
        mark(step)
        step = "cgroups"
        # Not before: its walls are built at the launcher's pace, whatever processor time the container may use.
        join_cgroups(cgroup_files)
        mark(step)
        if plan.cgroup_v1 or plan.cgroup_v2:
            step = "cgroup namespace"
            syscalls.unshare(syscalls.NEWCGROUP)
        step = "user namespace"
        syscalls.unshare(syscalls.NEWUSER)
        outside.send(_ENTERED)
        if outside.recv(1) != _MAPPED:
            os._exit(1)  # the intermediate has reported why
        sandbox.become_container_root()
        mark(step)
        step = "capabilities"
        syscalls.keep_capabilities(sandbox.KEPT_CAPABILITIES)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        step = "seccomp"
        seccomp.install(plan.seccomp)
        mark(step)
        outside.close()
        step = "runner"
        runner = start_runner(plan, fds, enter_runner)
        mark(step)
    except (OSError, BindError) as error:
        raise StepError(step, error) from error
    return runner, timeline, notes


def start_runner(plan: Plan, fds: PlanFds, enter_runner: RunnerEntry) -> int:
    """Fork the runner; returns its pid once it has exec'd or is about to enter `main`, and all but the status socket
    and the standard streams are closed here. Raises OSError when the interpreter cannot be executed."""
    catch_signals()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Whatever happens below must not unwind into the caller's frames: they belong to init.
        code = 1
        try:
            tell = _place_descriptors(fds, tell)
            _become_runner(plan, enter_runner)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(tell, f"{error.errno or 0} {error}".encode()[:4096])
        except SystemExit as error:
            code = _exit_code(error)
        os._exit(code)
    os.close(tell)
    failure = os.read(told, 4096).decode(errors="replace")
    os.close(told)
    if failure:
        number, _, text = failure.partition(" ")
        raise OSError(int(number), text)
    syscalls.close_all_but([0, 1, 2, fds.status])
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != fds.status:
            os.dup2(null, fd)
    return pid


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _place_descriptors(fds: PlanFds, tell: int) -> int:
    """Put the runner's descriptors where it expects them, and close all others but `tell`, whose new number is
    returned: 6, closed by exec."""
    wanted = [os.open("/dev/null", os.O_RDONLY), fds.stdout, fds.stderr, fds.control, fds.page, fds.lifeline]
    # Above all targets first, so that no dup2 overwrites a source still needed.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (*wanted, tell)]
    for target, fd in enumerate(lifted[:6]):
        os.dup2(fd, target, inheritable=True)
    os.dup2(lifted[6], 6, inheritable=False)
    syscalls.close_range(7)
    return 6


def _become_runner(plan: Plan, enter_runner: RunnerEntry) -> None:
    restore_signals()
    os.setsid()
    with contextlib.suppress(OSError):
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # the change of ids cleared it; /proc/self must be the runner's own
    limit_resources(plan)
    os.chdir(plan.spec.cwd)
    environment = runner_environment(plan.spec)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    enter_runner(plan.spec)


def limit_resources(plan: Plan) -> None:
    """Set the limits of user code on this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, plan.open_files)
    for kind, limit in (
        (resource.RLIMIT_DATA, plan.data_limit),
        (resource.RLIMIT_NPROC, plan.process_limit),
        (resource.RLIMIT_FSIZE, plan.file_limit),
    ):
        if limit is not None:
            _, hard = resource.getrlimit(kind)
            value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (value, value))


def runner_environment(spec: ContainerSpec) -> dict[str, str]:
    """The whole environment of a container: a plain one, and over it what the spec says."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own: dict[str, str] = {}
    if spec.interpreter is not None:
        directory = os.path.dirname(spec.interpreter.executable)
        path = path if directory in path.split(":") else f"{directory}:{path}"
        own["FARCALL_RUNNER_PATH"] = spec.interpreter.runner_path
    return {
        "PATH": path,
        "HOME": "/root",
        "USER": "root",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        **spec.env,
        **own,
    }


def bootstrap_path(spec: ContainerSpec) -> str:
    """The script that an exec'd runner starts with."""
    assert spec.interpreter is not None  # a command has no runner
    return os.path.join(spec.interpreter.runner_path, "farcall/runner/bootstrap.py")


def exec_runner(spec: ContainerSpec) -> NoReturn:
    """Replace the process by the interpreter running the runner's bootstrap script, or by the command."""
    if spec.command:
        command.enter(spec)
    assert spec.interpreter is not None
    arguments = [*spec.entrypoint, spec.interpreter.executable, bootstrap_path(spec)]
    os.execvpe(arguments[0], arguments, dict(os.environ))


def catch_signals() -> None:
    """Pid 1 gets only signals it has a handler for: note them all, to forward them."""
    for number in _FORWARDED:
        signal.signal(number, _noted)
    signal.signal(signal.SIGCHLD, _noted)


def _noted(number: int, frame: object) -> None:
    """The wakeup descriptor carries the signal's number to the loop."""


def restore_signals() -> None:
    """Signals as a fresh Python has them."""
    for number in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def supervise(
    status: int,
    runner: int,
    timeline: dict[str, float],
    notes: list[str],
    execs: Execs,
    end: Callable[[], None] | None = None,
    ahead: Sequence[bytes] = (),
) -> NoReturn:
    """Be init until the runner ends: reap, forward signals, start commands, and report how the runner ended.

    Ends at once, and with it the whole container, when the launcher is gone. `end` kills what is left where there is no
    pid namespace that dies with this process. Files in `ahead` are what the runner will soon ask for.
    """
    wake_in, wake_out = socket.socketpair()
    wake_in.setblocking(False)
    wake_out.setblocking(False)
    signal.set_wakeup_fd(wake_out.fileno(), warn_on_full_buffer=False)
    report(status, Running(timeline, notes))
    warming.look_up(ahead)
    poll = select.poll()
    poll.register(status, select.POLLIN)
    poll.register(wake_in.fileno(), select.POLLIN)
    channel = socket.socket(fileno=status)
    numbers = bytes([signal.SIGCHLD])  # the runner may have ended before the wakeup descriptor was set
    ended: int | None = None
    while ended is None:
        for number in numbers:
            if number == signal.SIGCHLD:
                ended = _reap(runner, execs)
            else:
                os.kill(runner, number)
        numbers = b""
        if ended is not None:
            break
        for fd, _ in poll.poll():
            if fd == status:
                message, carried = descriptors.receive(channel, MAX_REPORT, 3)
                if not message:
                    if end:
                        end()
                    os._exit(1)
                match decode_order(message):
                    case SendSignal(signal=number):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(runner, number)
                    case StartExec() as order:
                        execs.start(order, carried)
                    case SignalExec() as order:
                        execs.signal(order)
            else:
                numbers += wake_in.recv(1024)
    code = os.waitstatus_to_exitcode(ended)
    report(status, Ended(code, None) if code >= 0 else Ended(None, -code))
    if end:
        end()
    os._exit(0)


def _reap(runner: int, execs: Execs) -> int | None:
    """Reap all that has ended; the runner's wait status, if it is among them."""
    ended = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == runner:
                ended = wait_status
            else:
                execs.reaped(pid, wait_status)
    return ended
