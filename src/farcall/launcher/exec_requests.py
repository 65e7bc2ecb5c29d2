"""Commands in containers, as the launcher passes them on: the worker's requests to pid 1, its reports to the worker."""

import contextlib
import os
import signal

from farcall.launcher import descriptors, plan
from farcall.launcher.container import Container
from farcall.launcher.messages import Exec, ExecEnded, ExecStarted, Failed, SignalExec
from farcall.launcher.worker_link import WorkerLink


class ExecRequests:
    """Numbers commands, and knows which request each answers. What a container runs is in its `execs`."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._count = 0

    def start(self, container: Container | None, request: Exec, fds: list[int]) -> None:
        """Passes a request on; takes over the descriptors."""
        try:
            if container is None or not container.started or container.dead:
                self._link.reply(Failed(request.seq, "not-found", f"no container {request.container_id} runs here"))
                return
            self._count += 1
            container.order(
                plan.StartExec(self._count, request.command, request.environment, request.workdir, request.terminal),
                fds,
            )
            container.execs[self._count] = request.seq
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._link.reply(Failed(request.seq, "conflict", f"{request.container_id} takes no command: {reason}"))
        finally:
            descriptors.close(fds)

    def signal(self, container: Container | None, request: SignalExec) -> None:
        """Passes a signal on; a command that has ended is no error."""
        if container is not None and request.exec_id in container.execs:
            with contextlib.suppress(OSError):  # the container ends, and its commands with it
                container.order(plan.SignalExec(request.exec_id, request.signal))

    def hear(self, container: Container, report: plan.Report, fds: list[int]) -> None:
        """Tells the worker what pid 1 says of a command. The descriptors stay the caller's."""
        if getattr(report, "exec_id", 0) not in container.execs:
            return
        match report:
            case plan.ExecStarted(exec_id=exec_id, error=""):
                seq, container.execs[exec_id] = container.execs[exec_id], 0
                self._link.reply(ExecStarted(seq, exec_id), fds)
            case plan.ExecStarted(exec_id=exec_id, error=error):
                seq = container.execs.pop(exec_id)
                self._link.reply(Failed(seq, "conflict", f"{container.id} could not start a command: {error}"))
            case plan.ExecEnded(exec_id=exec_id):
                del container.execs[exec_id]
                self._link.reply(ExecEnded(exec_id, report.exit_code, report.signal))
            case _:
                pass

    def end(self, container: Container) -> None:
        """The container is gone, and its commands with it."""
        for exec_id, seq in container.execs.items():
            if seq:
                self._link.reply(Failed(seq, "conflict", f"{container.id} ended before it could start a command"))
            else:
                self._link.reply(ExecEnded(exec_id, None, signal.SIGKILL))
        container.execs.clear()
