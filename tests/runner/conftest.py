"""A real runner process, and this test as its worker and launcher."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

import farcall
from farcall.sdk import exceptions_codec, values
from farcall.spec.function import FunctionSpec, MethodSpec, Source
from farcall.wire import descriptors, messages
from farcall.wire.frames import FrameEncoder
from farcall.wire.incoming import Incoming
from farcall.wire.page import SharedPage

M = TypeVar("M")
ROOT = Path(farcall.__file__).parent.parent
PATIENCE = 20.0  # seconds for something that happens at once unless something is broken
# In a function under test: whether `Worker.go` has been called.
MAY_GO = "os.path.exists(os.path.expanduser('~/go'))"


class Worker:
    """One runner, driven by hand."""

    def __init__(self, folder: Path, python: str = sys.executable, runner_path: Path = ROOT) -> None:
        self.folder = folder
        self.page_fd = SharedPage.create()
        self.page = SharedPage(self.page_fd)
        self.sock, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.lifeline, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.encoder = FrameEncoder()
        self.incoming = Incoming(messages.FromRunner)
        self.inbox: deque[tuple[Any, tuple[int, ...], float]] = deque()
        self.prints: list[messages.Print] = []
        self.results: dict[int, tuple[messages.Result, tuple[int, ...], float]] = {}
        self.items: list[tuple[messages.RunnerItems, tuple[int, ...]]] = []
        self.seq = 0
        self.raw: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        null = os.open("/dev/null", os.O_RDONLY)
        out, err = os.pipe(), os.pipe()
        self._readers = [
            threading.Thread(target=self._drain, args=(fd, number), daemon=True)
            for number, fd in ((1, out[0]), (2, err[0]))
        ]
        high = [
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
            for fd in (null, out[1], err[1], control.fileno(), self.page_fd, lifeline.fileno())
        ]
        self.pid = os.posix_spawn(
            python,
            [python, str(runner_path / "farcall/runner/bootstrap.py")],
            {
                "PATH": os.environ["PATH"],
                "FARCALL_RUNNER_PATH": str(runner_path),
                "FARCALL_CONTAINER_ID": "ta-test",
                "HOME": str(folder),
            },
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high)],
        )
        self.pidfd = os.pidfd_open(self.pid)
        for fd in (*high, null, out[1], err[1]):
            os.close(fd)
        control.close()
        lifeline.close()
        for reader in self._readers:
            reader.start()
        self.status: int | None = None

    def _drain(self, fd: int, number: int) -> None:
        while data := os.read(fd, 65536):
            self.raw[number] += data
        os.close(fd)

    # --- the wire

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        frame = self.encoder.encode(message, len(fds))
        sent = self.sock.sendmsg([frame], descriptors.pack(fds) if fds else [])
        if sent < len(frame):
            self.sock.sendall(frame[sent:])

    def read(self, timeout: float = PATIENCE) -> bool:
        """Takes what has arrived, waiting for something; False at the end or when nothing came."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return False
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(1 << 18, descriptors.ANCILLARY_SPACE)
        except ConnectionResetError:  # it ended with something unread
            return False
        if not data:
            return False
        now = time.monotonic()
        self.incoming.add(memoryview(data), ancillary, flags)
        while (taken := self.incoming.take()) is not None:
            message, fds = taken
            assert not isinstance(message, Exception), message
            if isinstance(message, messages.Print):
                self.prints.append(message)
            elif isinstance(message, messages.RunnerItems):
                self.items.append((message, fds))
            elif isinstance(message, messages.Results):
                position = 0
                for result in message.results:
                    mine = fds[position : position + result.descriptors]
                    position += result.descriptors
                    assert result.seq not in self.results, f"two results for input {result.seq}"
                    self.results[result.seq] = result, mine, now
            else:
                self.inbox.append((message, fds, now))
        return True

    def until(self, condition: Callable[[], bool]) -> None:
        """Reads until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self.read(max(0.0, deadline - time.monotonic())):
                ended = select.select([self.pidfd], [], [], 0.1)[0]
                state = f"ended with {os.waitstatus_to_exitcode(self.wait_exit())}" if ended else "went silent"
                pytest.fail(f"the runner {state}; stderr: {bytes(self.raw[2]).decode()}\n{self.text('stderr')}")

    def expect(self, kind: type[M]) -> M:
        """The next message, which must be of that kind."""
        self.until(lambda: bool(self.inbox))
        message = self.inbox.popleft()[0]
        assert isinstance(message, kind), message
        return message

    def text(self, stream: str = "stdout", seq: int | None = None) -> str:
        return "".join(p.text for p in self.prints if p.stream == stream and seq in (None, p.seq))

    # --- functions

    def load(
        self,
        code: str,
        qualname: str = "f",
        *,
        methods: tuple[MethodSpec, ...] | None = None,
        generator: bool = False,
        asynchronous: bool = False,
        is_class: bool = False,
        params: bytes = b"",
        name: str = "program",
        fails: bool = False,
        **spec: Any,
    ) -> messages.Loaded:
        """Has the runner load a program; `f` is a plain function of it unless something else is said. It must load,
        or must not where `fails` says so."""
        script = self.folder / f"{name}.py"
        script.write_text(textwrap.dedent(code))
        source = Source(module=name, qualname=qualname, script=str(script))
        if methods is None:
            methods = (MethodSpec("", generator, asynchronous),)
        spec.setdefault("source", source)
        function = FunctionSpec(
            function_id="cs-1" if is_class else "fu-1", name=qualname, methods=methods, is_class=is_class, **spec
        )
        loaded = self.load_spec(messages.Load("ap-1", function, params))
        if fails != (loaded.error is not None):
            pytest.fail(f"loading: {loaded.error and exceptions_codec.load_exception(loaded.error)!r}")
        return loaded

    def load_spec(self, message: messages.Load, fds: tuple[int, ...] = ()) -> messages.Loaded:
        hello = self.expect(messages.Hello)
        assert (hello.role, hello.container_id, hello.pid) == ("runner", "ta-test", self.pid)
        self.send(messages.Welcome(messages.PROTOCOL_VERSION, hello.version, "se-1", "", os.getpid()))
        self.send(message, fds)
        return self.expect(messages.Loaded)

    def run(
        self,
        *inputs: tuple[Any, ...],
        method: str = "",
        credit: int = 0,
        call_id: str = "fc-1",
        batch: int = 0,
        **kwargs: Any,
    ) -> list[int]:
        """Hands inputs over in one Run; returns their numbers. With `batch` they and the next ones, so many in all, are
        one batch."""
        run = messages.Run(call_id, method, [], credit, self.seq + batch if batch else 0)
        fds: list[int] = []
        for index, args in enumerate(inputs):
            self.seq += 1
            payload = values.dumps_call(args, kwargs)
            run.inputs.append(messages.RunInput(self.seq, index, payload.data, len(payload.fds)))
            fds += payload.fds
        self.send(run, tuple(fds))
        descriptors.close_all(fds)
        return [each.seq for each in run.inputs]

    def go(self) -> None:
        """Lets go of what waits for MAY_GO."""
        (self.folder / "go").touch()

    def wait_running(self, seq: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.page.started != seq:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def outcome(self, seq: int) -> Any:
        """The result of an input; raises what it raised."""
        self.until(lambda: seq in self.results)
        result, fds, _ = self.results[seq]
        if result.status in (messages.OK, messages.GENERATOR_DONE):
            return values.loads(result.data, fds)
        if result.status == messages.EXCEPTION:
            raise exceptions_codec.load_exception(result.data, fds)
        raise PlatformError(msgspec.msgpack.decode(result.data, type=messages.Failure))

    def call(self, *args: Any, method: str = "", **kwargs: Any) -> Any:
        """Runs one input."""
        return self.outcome(self.run(args, method=method, **kwargs)[0])

    def stream(self) -> list[Any]:
        """All items that have come, checked for order."""
        found: list[Any] = []
        for message, fds in self.items:
            assert message.first == len(found)
            position = 0
            for number, item in enumerate(message.items):
                count = message.descriptors[number] if message.descriptors else 0
                found.append(values.loads(item, [os.dup(fd) for fd in fds[position : position + count]]))
                position += count
        return found

    # --- cancelling and ending

    def cancel(self, seq: int, reason: int = SharedPage.CANCELLED) -> None:
        """As the worker does where one input runs at a time: page, frame, and a signal where it runs."""
        self.page.cancel(seq, reason)
        self.send(messages.CancelInput(seq, reason))
        if self.page.started == seq:
            os.kill(self.pid, signal.SIGUSR1)

    def stop_input(self, seq: int, reason: int = SharedPage.CANCELLED) -> None:
        """As the worker stops an input that runs beside others."""
        self.send(messages.CancelInput(seq, reason))

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """The wait status of the runner, which is about to end. What was written past Python has been read then."""
        if self.status is None:
            deadline = time.monotonic() + timeout
            while not select.select([self.pidfd], [], [], 0)[0]:
                if time.monotonic() > deadline:
                    pytest.fail("the runner does not end")
                if self.sock.fileno() >= 0:
                    with contextlib.suppress(OSError):
                        self.read(0.02)
            _, self.status = os.waitpid(self.pid, 0)
            if self.sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    while self.read(0.05):
                        pass
            for reader in self._readers:
                reader.join(PATIENCE)
        return self.status

    def stop(self, grace: float = 5.0) -> int:
        """Ends the runner in the usual way; its wait status."""
        self.send(messages.Stop(grace))
        return self.wait_exit()

    def close(self) -> None:
        if self.status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.sock.close()
        self.lifeline.close()
        os.close(self.pidfd)
        os.close(self.page_fd)
        self.page.close()


class PlatformError(Exception):
    """A PLATFORM_ERROR outcome."""

    def __init__(self, failure: messages.Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.close()
