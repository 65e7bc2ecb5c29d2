"""One container as the launcher keeps it, and the start of the processes that become it."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence

from farcall.launcher import descriptors, init, process_runtime
from farcall.launcher.cgroups import Cgroup
from farcall.launcher.messages import Exited
from farcall.launcher.network import NetworkLease
from farcall.launcher.plan import (
    Born,
    Broken,
    Ended,
    ExecEnded,
    ExecStarted,
    Order,
    Plan,
    PlanFds,
    Report,
    Running,
    SendSignal,
    decode_report,
    encode,
)
from farcall.launcher.template import HAS_IDMAP, HAS_NETNS

_MIB = 1024 * 1024


class Container:
    """A container from its request to its end. The launcher moves it along as reports come in."""

    def __init__(self, seq: int, plan: Plan, fds: list[int], cgroup: Cgroup | None, lease: NetworkLease | None) -> None:
        """Takes over `fds`: control socket, stdout, stderr, shared page."""
        self.seq = seq
        self.plan = plan
        self.id = plan.spec.container_id
        self.cgroup = cgroup
        self.lease = lease
        self.requested = time.monotonic()
        self.notes: list[str] = []
        self.timeline: dict[str, float] = {}
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.started = False
        self.broken: Broken | None = None
        self.ended: Ended | None = None
        self.killed_by_us = False
        self.disk_exceeded = False
        self.dead = False  # pid 1 is gone
        self.exit: Exited | None = None
        self.empty_scans = 0  # how often in a row nothing was found that outlived it
        self.execs: dict[int, int] = {}  # number of a command to the request that is not answered yet, 0 once it is
        self.status, self._status_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lifeline, lifeline_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.status.setblocking(False)
        self._given = [*fds, lifeline_far.detach()]

    def mark(self, step: str) -> None:
        """Note the time of a step for the timeline."""
        self.timeline[step] = time.monotonic()

    def fork_here(self, idmap_fd: int | None) -> int:
        """Start by exec: fork the intermediate from this process. Returns its pid."""
        pid = os.fork()
        if pid == 0:
            fds = self._plan_fds(idmap_fd, -1)
            make = init.make_container if self.plan.spec.runtime == "native" else process_runtime.make_container
            make(self.plan, fds, init.exec_runner)
        return pid

    def fork_from(self, template: socket.socket, idmap_fd: int | None) -> None:
        """Start by fork: hand the plan to a template. Raises OSError when the template is gone or stuffed."""
        memfd = os.memfd_create("plan", os.MFD_CLOEXEC)
        try:
            os.write(memfd, encode(self.plan))
            fds = self._plan_fds(idmap_fd, memfd)
            flags = (HAS_IDMAP if fds.idmap is not None else 0) | (HAS_NETNS if fds.netns is not None else 0)
            descriptors.send(template, bytes([flags]), [fd for fd in fds if fd is not None], wait=False)
        finally:
            os.close(memfd)

    def _plan_fds(self, idmap_fd: int | None, plan_fd: int) -> PlanFds:
        control, stdout, stderr, page, lifeline = self._given
        return PlanFds(
            status=self._status_far.fileno(),
            control=control,
            stdout=stdout,
            stderr=stderr,
            page=page,
            lifeline=lifeline,
            plan=plan_fd,
            idmap=idmap_fd if self.plan.has_idmap else None,
            netns=self.lease.netns_fd if self.lease and self.plan.has_netns else None,
        )

    def let_go(self) -> None:
        """Close what only the container's own processes should hold, once they hold it."""
        if self._given:
            self._status_far.close()
            for fd in self._given:
                os.close(fd)
            self._given = []

    def reports(self) -> tuple[list[tuple[Report, list[int]]], bool]:
        """Take in what has arrived, with descriptors that are the caller's. The second value is True at the end of the
        stream."""
        found: list[tuple[Report, list[int]]] = []
        while True:
            try:
                data, fds = descriptors.receive(self.status, init.MAX_REPORT, 1)
            except BlockingIOError:
                return found, False
            except OSError:
                return found, True
            if not data:
                return found, True
            message = decode_report(data)
            match message:
                case Born(pid=pid):
                    self.pid, self.pidfd = pid, fds.pop()
                    self.mark("born")
                case Running(timeline=timeline, notes=notes):
                    # It was born before it did anything, however long the word of that has waited to be read.
                    if "born" in self.timeline:
                        timeline["born"] = min((self.timeline["born"], *timeline.values()))
                    self.timeline |= timeline
                    self.notes += notes
                    self.started = True
                case Broken():
                    self.broken = self.broken or message
                case Ended():
                    self.ended = message
                case ExecStarted() | ExecEnded():
                    pass
            found.append((message, fds))

    def steps(self) -> dict[str, float]:
        """The timeline as seconds since the request, in order."""
        ordered = sorted(self.timeline.items(), key=lambda item: item[1])
        return {step: round(at - self.requested, 6) for step, at in ordered}

    def send_signal(self, number: int) -> None:
        """Signal the runner; SIGKILL ends pid 1, and with it all."""
        if number == signal.SIGKILL:
            self.killed_by_us = True
            self.kill()
        else:
            self.order(SendSignal(number))

    def order(self, order: Order, fds: Sequence[int] = ()) -> None:
        """Tell pid 1 to do something. Raises OSError where it cannot be told."""
        descriptors.send(self.status, encode(order), fds, wait=False)

    def kill(self) -> None:
        """End the container at once, whatever it does."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        # Where no pid namespace dies with its first process, the supervisor kills the rest when this end hangs up.
        with contextlib.suppress(OSError):
            self.status.shutdown(socket.SHUT_WR)

    def exited(self) -> Exited:
        """What to tell the worker at the end."""
        usage = self.cgroup.usage() if self.cgroup else None
        # No word from init: it was killed, and everything with it.
        code, number = (self.ended.exit_code, self.ended.signal) if self.ended else (None, int(signal.SIGKILL))
        if self.killed_by_us or self.disk_exceeded:
            code, number = None, int(signal.SIGKILL)
        killed_by_kernel = number == signal.SIGKILL and not self.killed_by_us and not self.disk_exceeded
        limit = self.plan.spec.limits.memory_limit
        return Exited(
            container_id=self.id,
            exit_code=code,
            signal=number,
            out_of_memory=bool(killed_by_kernel and usage and usage.oom_kills),
            memory_peak=usage.peak if usage else 0,
            memory_limit=limit * _MIB if limit else 0,
            killed_by_us=self.killed_by_us,
            disk_exceeded=self.disk_exceeded,
        )

    def close(self) -> None:
        """Close all descriptors that are still open."""
        self.let_go()
        self.status.close()
        self.lifeline.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
