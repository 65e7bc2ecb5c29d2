"""Commands that are started in a container that runs, by its own pid 1: confined as everything there, from birth."""

import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from typing import NoReturn

from farcall.launcher import descriptors, syscalls
from farcall.launcher.plan import ExecEnded, ExecStarted, Report, SignalExec, StartExec
from farcall.spec.container import ContainerSpec

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # exit codes, as of a shell


class Execs:
    """The commands of one container, in its pid 1, which has one thread."""

    def __init__(
        self,
        spec: ContainerSpec,
        environment: dict[str, str],
        report: Callable[[Report, list[int]], None],
        prepare: Callable[[], None],
    ) -> None:
        """`prepare` runs in each command's process, before it becomes the command: what is to confine it beyond what it
        inherits."""
        self._spec = spec
        self._environment = environment
        self._report = report
        self._prepare = prepare
        self._pids: dict[int, int] = {}  # by the number of the command

    def start(self, order: StartExec, fds: list[int]) -> None:
        """Starts a command. `fds` are its standard streams; none where it gets a terminal."""
        leader = -1
        try:
            if order.terminal is not None:
                leader, follower = os.openpty()
                rows, columns = order.terminal
                fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                fds = [follower, follower, follower]
            pid = os.fork()
            if pid == 0:
                self._become(order, fds)
            self._pids[order.exec_id] = pid
            self._report(ExecStarted(order.exec_id, ""), [leader] if leader >= 0 else [])
        except OSError as error:
            self._report(ExecStarted(order.exec_id, str(error)), [])
        finally:
            descriptors.close(list(dict.fromkeys([*fds, *([leader] if leader >= 0 else [])])))

    def signal(self, order: SignalExec) -> None:
        """Signals a command and what it has started in its process group; one that has ended is no error."""
        pid = self._pids.get(order.exec_id)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, order.signal)

    def reaped(self, pid: int, wait_status: int) -> None:
        """A child of pid 1 has ended, a command perhaps."""
        for exec_id, known in self._pids.items():
            if known == pid:
                del self._pids[exec_id]
                code = os.waitstatus_to_exitcode(wait_status)
                self._report(ExecEnded(exec_id, *((code, None) if code >= 0 else (None, -code))), [])
                return

    def _become(self, order: StartExec, fds: list[int]) -> NoReturn:
        """In the child: be the command."""
        code, culprit = 1, order.workdir
        try:
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():
                with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP
                    signal.signal(number, signal.SIG_DFL)
            os.setsid()
            # Above all targets first, so that no dup2 overwrites a source still needed.
            lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds]
            for target, fd in enumerate(lifted):
                os.dup2(fd, target, inheritable=True)
            syscalls.close_range(3)
            if order.terminal is not None:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            with contextlib.suppress(OSError):
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # as for the runner: /proc/self is its own
            self._prepare()
            os.chdir(order.workdir or self._spec.cwd)
            culprit = order.command[0]
            os.execvpe(order.command[0], order.command, {**self._environment, **order.environment})
        except OSError as error:
            code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
            with contextlib.suppress(OSError):
                os.write(2, f"{culprit}: {error.strerror}\n".encode())
        finally:
            os._exit(code)  # nothing may unwind into the frames of pid 1
