"""The launcher's side of the base templates: one process per interpreter, made on demand, restarted after a crash."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from farcall.launcher.loop import Loop
from farcall.launcher.plan import fingerprint
from farcall.launcher.template import BROKEN, FORKED, READY, SOCKET_FD
from farcall.spec.container import Interpreter

IDLE_SECONDS = float(os.environ.get("FARCALL_TEMPLATE_IDLE", "600"))
# A template that could not be made is not tried again at every start.
_RETRY_SECONDS = 60.0
_MEMORY_UNKNOWN = 32  # MiB; about what one takes
_BOOT_SECONDS = (
    20.0  # importing the runner takes a tenth of a second; what the interpreter itself imports may take long
)


class Template:
    """One template process."""

    def __init__(self, key: str, pid: int, pidfd: int, channel: socket.socket) -> None:
        self.key = key
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.ready = False
        self.started = self.used = time.monotonic()
        self.waiting: list[Callable[[str | None], None]] = []  # told once: None when ready, else why not


class Templates:
    """All templates of one launcher."""

    def __init__(
        self,
        loop: Loop,
        scratch: Path,
        on_forked: Callable[[Template], None],
        on_lost: Callable[[Template], None],
        on_memory: Callable[[str, int], None],
    ) -> None:
        """`on_forked` is called for each request a template has carried out, in order; `on_lost` when one has ended;
        `on_memory` with key and MiB when one is ready, and with 0 when it no longer is."""
        self._loop = loop
        self._home = str(scratch / "no-home")
        self._on_forked = on_forked
        self._on_lost = on_lost
        self._on_memory = on_memory
        self._live: dict[str, Template] = {}
        self._failures: dict[str, tuple[float, str]] = {}

    def get(self, interpreter: Interpreter, *, retry: bool = False) -> Template | str:
        """The template of an interpreter, started if there is none; or why there can be none. After a failure it is
        tried again only with `retry`, or after a while."""
        key = "\0".join((interpreter.executable, interpreter.version, interpreter.runner_path))
        template = self._live.get(key)
        if template is None:
            failed_at, why = self._failures.get(key, (-_RETRY_SECONDS, ""))
            if time.monotonic() - failed_at < _RETRY_SECONDS and not retry:
                return why
            try:
                template = self._start(key, interpreter)
            except OSError as error:
                return self._fail(key, f"{interpreter.executable}: {os.strerror(error.errno or 0)}")
        template.used = time.monotonic()
        return template

    def when_ready(self, template: Template, tell: Callable[[str | None], None]) -> None:
        """Call `tell` once the template is warm, with None, or why it never will be."""
        if template.ready:
            tell(None)
        else:
            template.waiting.append(tell)

    def end_idle(self) -> None:
        """End the templates that nobody has used for long, and those that do not come up."""
        now = time.monotonic()
        for template in list(self._live.values()):
            if template.ready and now - template.used > IDLE_SECONDS:
                self._drop(template, "ended: idle")
            elif not template.ready and now - template.started > _BOOT_SECONDS:
                why = f"the interpreter was not ready in {_BOOT_SECONDS:.0f} s"
                self._drop(template, self._fail(template.key, why))

    def end(self, key: str) -> None:
        """End a template because memory is short. Until it is tried again containers start by exec."""
        template = self._live.get(key)
        if template is not None:
            self._drop(template, self._fail(key, "ended: memory is short"))

    def tell(self) -> None:
        """Call `on_memory` for those that are ready."""
        for template in self._live.values():
            if template.ready:
                self._on_memory(template.key, _memory(template.pid))

    def close(self) -> None:
        """End all."""
        for template in list(self._live.values()):
            self._drop(template, "the launcher ends")

    def _start(self, key: str, interpreter: Interpreter) -> Template:
        script = os.path.join(interpreter.runner_path, "farcall/launcher/template.py")
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # As the container's own, except for a home that does not exist: no user site of the host's gets on sys.path.
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self._home,
            "USER": "root",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
        }
        with far:
            pid = os.posix_spawn(
                interpreter.executable,
                [interpreter.executable, script],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 2, 1),
                    (os.POSIX_SPAWN_DUP2, far.fileno(), SOCKET_FD),
                ],
                setsigdef=[signal.SIGPIPE],
            )
        near.setblocking(False)
        template = Template(key, pid, os.pidfd_open(pid), near)
        self._live[key] = template
        self._loop.add(near.fileno(), lambda: self._hear(template))
        self._loop.add(template.pidfd, lambda: self._died(template))
        return template

    def _hear(self, template: Template) -> None:
        while template.key in self._live:
            try:
                message = template.channel.recv(8192)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message.startswith(READY) and message.removeprefix(READY) != fingerprint():
                why = "the runner directory is of another farcall version than this launcher"
                self._drop(template, self._fail(template.key, why))
            elif message.startswith(READY):
                template.ready = True
                self._on_memory(template.key, _memory(template.pid))
                waiting, template.waiting = template.waiting, []
                for tell in waiting:
                    tell(None)
            elif message == FORKED:
                self._on_forked(template)
            elif message.startswith(BROKEN):
                why = message.removeprefix(BROKEN).decode(errors="replace")
                self._drop(template, self._fail(template.key, why))
            else:
                self._drop(template, "the template process ended")

    def _died(self, template: Template) -> None:
        self._hear(template)  # what it has forked is not to be started again
        self._drop(template, "the template process ended")

    def _fail(self, key: str, why: str) -> str:
        self._failures[key] = (time.monotonic(), why)
        return why

    def _drop(self, template: Template, why: str) -> None:
        if self._live.pop(template.key, None) is None:
            return
        if not template.ready and template.key not in self._failures:
            self._fail(template.key, why)
        self._loop.remove(template.channel.fileno())
        self._loop.remove(template.pidfd)
        template.channel.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(template.pidfd, signal.SIGKILL)
        os.close(template.pidfd)
        os.waitpid(template.pid, 0)
        for tell in template.waiting:
            tell(why)
        if template.ready:
            self._on_memory(template.key, 0)
        self._on_lost(template)


def _memory(pid: int) -> int:
    """MiB, rounded up, of what a process has in memory that is its own, or its part of what it shares."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _MEMORY_UNKNOWN
    return -(-kib // 1024)
