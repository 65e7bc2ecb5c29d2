"""The runner's life: connect, load, run inputs, run exit hooks, end."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from farcall.errors import ConnectionLostError
from farcall.runner import forks, lifeline
from farcall.runner.channel import RunnerConnection
from farcall.runner.execution import Executor
from farcall.runner.inbox import Inbox
from farcall.runner.loading import Loaded, load
from farcall.runner.outbox import Outbox
from farcall.sdk import client as clients
from farcall.sdk import shared_memory
from farcall.sdk.exceptions_codec import dump_exception
from farcall.version import __version__
from farcall.wire import messages
from farcall.wire.page import SharedPage

if TYPE_CHECKING:
    from farcall.runner.concurrency import Concurrency

CONTROL_FD, PAGE_FD, LIFELINE_FD = 3, 4, 5

# msgspec keeps with the types what it works out about them, here where a template's forks share it.
msgspec.msgpack.Decoder(messages.ToRunner)


class Runner:
    """One container's process."""

    def __init__(self, container_id: str) -> None:
        for fd in (CONTROL_FD, PAGE_FD, LIFELINE_FD):
            os.set_inheritable(fd, False)
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.executor = Executor(container_id, SharedPage(PAGE_FD), self.inbox, self.outbox)
        self.output = self.executor.output
        self._container_id = container_id
        self._loaded = Loaded({}, [], [])
        self._has_volumes = False
        self._tells_imports = False
        self._concurrency: Concurrency | None = None  # for a function that runs several inputs at once

    def run(self) -> int:
        """From hello to the exit hooks. Returns the exit status, or dies of the signal that ended an input."""
        self.executor.cancellation.install()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_end_signal)
        self.output.install()
        faulthandler.enable(2, all_threads=False)
        self._connect(socket.socket(fileno=CONTROL_FD))
        forks.register(self)
        if self._load():
            while True:
                (self._concurrency or self.executor).serve()
                if self.inbox.stopping or not self._reconnect():
                    break
            self._run_exit_hooks()
        self._commit_volumes()
        if self._tells_imports:
            self._tell_imports()
        return 0

    def finish(self, status: int) -> NoReturn:
        """Ends the process as an interpreter does, but for threads that are left: nobody waits for them."""
        import atexit

        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] - what the interpreter itself calls at its end
        for flush in (sys.stdout.flush, sys.stderr.flush, self.output.flush, self.outbox.flush):
            with contextlib.suppress(Exception):
                flush()
        if self.executor.ended_by:
            signal.signal(self.executor.ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), self.executor.ended_by)
        os._exit(status)

    # --- connection

    def _connect(self, sock: socket.socket, first: messages.Parked | None = None) -> None:
        self.inbox.lost = False
        connection = RunnerConnection(sock, self.inbox.receive, self.inbox.lose, self.executor.cancellation.check)
        self.inbox.client = clients.Client.adopt(connection)
        clients.use(self.inbox.client)
        self.executor.use(connection)
        with contextlib.suppress(ConnectionLostError):  # the main loop sees that too
            connection.send(
                messages.Hello(messages.PROTOCOL_VERSION, __version__, "runner", os.getpid(), self._container_id)
            )
            if first is not None:
                connection.send(first)
        self.outbox.reconnect(connection)

    def _reconnect(self) -> bool:
        """After the connection was lost: waits for another. False where none will come."""
        unstarted = self.inbox.drop_unstarted()
        sock = lifeline.receive(LIFELINE_FD, lambda: self.inbox.stopping)
        if sock is None:
            return False
        self._connect(sock, messages.Parked(0, unstarted))
        return True

    def release_descriptors(self) -> None:
        """In a forked child: lets go of what leads to worker and launcher. The client lets go of the socket."""
        self.executor.page.close()
        for fd in (PAGE_FD, LIFELINE_FD):
            with contextlib.suppress(OSError):
                os.close(fd)

    # --- start and end

    def _load(self) -> bool:
        inbox = self.inbox
        while inbox.load is None:
            inbox.waiter.clear()
            if inbox.lost or inbox.stopping:
                return False
            if inbox.load is None:
                self.executor.connection.wait(inbox.waiter)
        (message, fds), inbox.load = inbox.load, None
        executor = self.executor
        executor.outcomes.describe(message.function.name, message.function.timeout)
        if message.function.concurrency.max_inputs > 1:
            from farcall.runner.concurrency import Concurrency

            self._concurrency = Concurrency(executor)
        if message.function.memory[1] is not None:
            shared_memory.keep_nothing()
        self._tells_imports = message.tells_imports
        if message.volumes:
            from farcall.sdk import mounted_volumes

            mounted_volumes.begin(message.volumes)
            self._has_volumes = True
        started = monotonic()
        try:
            self._loaded = load(message, fds)
            for hook in self._loaded.enter_hooks:
                self._run_hook(hook)
        except BaseException as error:
            self._send_loaded(messages.Loaded(monotonic() - started, _dumped(error)))
            return False
        executor.targets = self._loaded.targets
        gc.freeze()  # what is loaded stays: the collector need not look at it, nor copy its pages
        self._send_loaded(messages.Loaded(monotonic() - started))
        return True

    def _send_loaded(self, message: messages.Loaded) -> None:
        self.output.flush()
        self.outbox.flush()
        with contextlib.suppress(ConnectionLostError):
            self.executor.connection.send(message)

    def _run_hook(self, hook: Any) -> None:
        result = hook()
        if hasattr(result, "__await__"):
            self.executor.loop.run(result)

    def _run_exit_hooks(self) -> None:
        hooks, self._loaded = self._loaded.exit_hooks, Loaded({}, [], [])
        for hook in hooks:
            try:
                self._run_hook(hook)
            except BaseException:
                sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType] - never empty in a handler
        if self.executor.has_loop:
            self.executor.loop.close()
        self.output.flush()

    def _commit_volumes(self) -> None:
        if self._has_volumes:
            from farcall.sdk import mounted_volumes

            mounted_volumes.end()
            self.output.flush()

    def _tell_imports(self) -> None:
        from farcall.runner.imports import imported_files

        with contextlib.suppress(ConnectionLostError):
            self.executor.connection.send(messages.Imported(imported_files(sys.modules)))

    # --- signals

    def _on_end_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT: an input that runs is interrupted, exit hooks run, and the process ends."""
        executor, inbox = self.executor, self.inbox
        if inbox.stopping:
            return
        inbox.stop()
        if executor.has_loop:
            executor.loop.wake()
        if inbox.running:
            executor.ended_by = number
            executor.cancellation.request(SharedPage.CANCELLED, frame)
            return
        if self._concurrency is not None and self._concurrency.running:
            executor.ended_by = number
        executor.connection.interrupt()

    def owns(self, handler: object) -> bool:
        """Whether a signal's handler is one of the runner's."""
        return handler in (self._on_end_signal, self.executor.cancellation.on_signal)


def _dumped(error: BaseException) -> bytes:
    """An exception in few bytes: one too large for them comes with the middle of its text left out."""
    payload = dump_exception(error)
    if not payload.fds:
        return payload.data
    payload.close()
    from farcall.errors import ExecutionError

    text = f"{type(error).__name__}: {error}"
    shorter = f"{text[:8000]}\n... farcall left out the middle ...\n{text[-8000:]}" if len(text) > 16_000 else text
    return dump_exception(ExecutionError(shorter, type_name=type(error).__name__)).data
