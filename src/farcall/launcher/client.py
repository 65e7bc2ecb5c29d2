"""The worker's side of the launcher: an asyncio client, which starts the launcher when there is none."""

import asyncio
import contextlib
import errno
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from farcall.errors import ConnectionError as ServerConnectionError
from farcall.errors import InternalError, InvalidError, ProtocolError, ResourceExhaustedError, VersionError, from_code
from farcall.launcher import descriptors
from farcall.launcher.messages import (
    MAX_DATAGRAM,
    AckExit,
    Done,
    EndTemplate,
    Exec,
    ExecEnded,
    ExecStarted,
    Exited,
    Failed,
    Hello,
    List,
    Listed,
    Measure,
    Measured,
    Prepare,
    PrepareTree,
    Reattach,
    Reply,
    Request,
    Shutdown,
    Signal,
    SignalExec,
    Start,
    Started,
    TemplateState,
    TreePrepared,
    Usage,
)
from farcall.launcher.process import NO_ROOM_STATUS, PROTOCOL_VERSION
from farcall.launcher.worker_link import SOCKET_NAME
from farcall.settings.room import free_room
from farcall.spec.container import ContainerSpec, Interpreter

_MAX_FDS = 250
_MAX_EXEC = 60 * 1024  # bytes of a command with its environment: pid 1 takes 64 KiB
_MAX_MEASURED = 1000  # containers a message
_START_SECONDS = 60.0  # for a new launcher to listen, a sweep of a killed one and a busy machine included
_GREETING_SECONDS = 5.0  # for one that listens to answer; one that does not hangs
_RETRY_SECONDS = 0.005
_RESTART_SECONDS = 0.5
_END_SECONDS = 20.0  # for a launcher to end all it has

_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_encode = msgspec.msgpack.encode

_R = TypeVar("_R", Done, TreePrepared, Started, Listed, ExecStarted, Measured)


class ContainerFds(NamedTuple):
    """What a container is given. The caller keeps its own copies, and may close them once `start` has returned."""

    control: int  # a connected socket
    stdout: int
    stderr: int
    page: int  # memory shared with the worker


class StartedContainer(NamedTuple):
    """A container that runs. `pidfd`, of pid 1, belongs to the caller, and is readable once the container is gone.

    `timeline` is seconds since the launcher got the request, by step.
    """

    container_id: str
    pid: int
    pidfd: int
    timeline: dict[str, float]
    notes: list[str]


class LiveContainer(NamedTuple):
    """A container found running. `pidfd` belongs to the caller."""

    container_id: str
    pidfd: int


class LauncherClient:
    """A worker's connection to its launcher. All methods belong to one event loop.

    `on_exit` is called for each container that ends, in order; the exit is acknowledged when it returns, so one that
    raises is told again to the next client that lists. `on_exec_end` is called for each command of `start_exec` that
    ends. `on_lost` is called once, when the launcher is gone without having been asked, or was killed because it hung;
    all its containers are then dead or dying, and their pidfds become readable.
    """

    def __init__(self, channel: socket.socket) -> None:
        """Takes over a connected, non-blocking socket. Use `connect`."""
        self.on_exit: Callable[[Exited], None] = _ignore_exit
        self.on_exec_end: Callable[[ExecEnded], None] = _ignore_exec_end
        self.on_template: Callable[[TemplateState], None] = lambda state: None
        self.on_lost: Callable[[], None] = _ignore_loss
        self.launcher_pid = 0
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        # A launcher outlives its worker: an answer to a former one's request must not be taken for one to ours.
        self._next_seq = secrets.randbits(48)
        self._waiting: dict[int, asyncio.Future[tuple[Reply, list[int]]]] = {}
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._out: list[tuple[bytes, list[int]]] = []
        self._closed = False
        self._heard_at = self._loop.time()
        self._asked_at: float | None = None  # for a sign of life, and has given none since
        self._pidfd = _pidfd_of(channel)
        self._loop.add_reader(channel.fileno(), self._readable)

    @classmethod
    async def connect(
        cls, state_dir: Path, *, idle_seconds: float | None = None, alone_seconds: float | None = None
    ) -> "LauncherClient":
        """Connect to the launcher of a state directory, starting it if none listens. One that is started ends itself
        when it is idle for `idle_seconds`, and its containers when it has had no worker for `alone_seconds`.

        Of several clients that start one at once, one launcher survives and all find it. Raises
        farcall.errors.ConnectionError when none comes up, ConflictError when it has a worker already, and VersionError.
        """
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        deadline = time.monotonic() + _START_SECONDS
        starting: subprocess.Popen[bytes] | None = None
        started_at = 0.0
        while True:
            channel = _try_connect(state_dir)
            if channel is not None:
                client = cls(channel)
                try:
                    async with asyncio.timeout(_GREETING_SECONDS):
                        await client._greet()
                    return client
                except ServerConnectionError:
                    client.close()  # it was ending itself just then
                except TimeoutError:
                    client.give_up()
                    client.close()
            now = time.monotonic()
            log = state_dir / "launcher.log"
            ended = None if starting is None else starting.poll()
            if ended == NO_ROOM_STATUS:
                room = f"{free_room(state_dir)} under {state_dir}"
                raise ResourceExhaustedError(f"the launcher found no room to start ({room}); free some space there")
            if ended is not None and ended > 0:
                raise ServerConnectionError(f"the launcher did not start: {_last_line(log)} (its log is {log})")
            if now > deadline:
                last = f" (the last one was ended by signal {-ended})" if ended else ""
                raise ServerConnectionError(f"no launcher came up in {_START_SECONDS:.0f} s{last}; its log is {log}")
            # One that ends with 0 has found another one, which is about to listen, or just ends. One that was killed
            # says nothing against the next.
            if starting is None or (ended is not None and now - started_at > _RESTART_SECONDS):
                starting, started_at = _start_launcher(state_dir, idle_seconds, alone_seconds), now
            await asyncio.sleep(_RETRY_SECONDS)

    async def start(self, spec: ContainerSpec, fds: ContainerFds) -> StartedContainer:
        """Make a container; returns when its runner runs. Raises ContainerStartError and others the launcher names."""
        reply, received = await self._ask(Start(self._seq(), spec), Started, list(fds))
        return StartedContainer(reply.container_id, reply.pid, received[0], reply.timeline, reply.notes)

    async def prepare(self, interpreter: Interpreter) -> None:
        """Warm the base template of an interpreter. Raises ContainerStartError when it can have none."""
        await self._ask(Prepare(self._seq(), interpreter), Done)

    def end_template(self, key: str) -> None:
        """End a base template, whose memory is wanted; `on_template` tells when it has ended."""
        if not self._closed:
            self._send(EndTemplate(key), [])

    async def prepare_tree(self, store: str, lease: str, tree_id: str) -> TreePrepared:
        """Make a tree of the content store ready to be mounted, which the lease keeps. Raises what
        `farcall.mounts.prepare` raises."""
        reply, _ = await self._ask(PrepareTree(self._seq(), store, lease, tree_id), TreePrepared)
        return reply

    async def reattach(self, container_id: str, fd: int) -> None:
        """Give a container a new control socket. Raises NotFoundError."""
        await self._ask(Reattach(self._seq(), container_id), Done, [fd])

    async def signal(self, container_id: str, signum: int) -> None:
        """Signal the runner; SIGKILL ends the container. Raises NotFoundError."""
        await self._ask(Signal(self._seq(), container_id, int(signum)), Done)

    async def kill(self, container_id: str) -> None:
        """End a container at once."""
        await self.signal(container_id, signal.SIGKILL)

    async def start_exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        workdir: str = "",
        streams: Sequence[int] = (),
        terminal: tuple[int, int] | None = None,
    ) -> tuple[int, int]:
        """Start a command in a container, on `streams` (input, output, error) or on a `terminal` of (rows, columns).

        Returns its number, and the controlling end of its terminal, which belongs to the caller, -1 without one.
        Raises NotFoundError, and ConflictError where the container ends. A command that cannot be executed says so on
        its standard error, and ends with 126 or 127.
        """
        request = Exec(self._seq(), container_id, [*command], {**(environment or {})}, workdir, terminal)
        reply, received = await self._ask(request, ExecStarted, [*streams])
        return reply.exec_id, received[0] if received else -1

    def signal_exec(self, container_id: str, exec_id: int, signum: int) -> None:
        """Signal a command and its process group; one that has ended is no error."""
        if not self._closed:
            self._send(SignalExec(container_id, exec_id, int(signum)), [])

    async def measure(self, container_ids: Sequence[str]) -> dict[str, Usage]:
        """What containers use; those without a cgroup, or gone, are left out."""
        usages: dict[str, Usage] = {}
        for start in range(0, len(container_ids), _MAX_MEASURED):
            page = [*container_ids[start : start + _MAX_MEASURED]]
            reply, _ = await self._ask(Measure(self._seq(), page), Measured)
            usages |= reply.usages
        return usages

    async def list(self) -> tuple[list[LiveContainer], list[Exited]]:
        """All containers that run, and the exits that nobody has acknowledged; acknowledge them with `acknowledge`."""
        live: list[LiveContainer] = []
        exits: list[Exited] = []
        more = True
        while more:
            reply, received = await self._ask(List(self._seq()), Listed)
            live += [LiveContainer(name, fd) for name, fd in zip(reply.containers, received, strict=True)]
            exits += reply.exits
            more = reply.more
        return live, exits

    def acknowledge(self, container_id: str) -> None:
        """Let the launcher forget an exit that `list` told of."""
        self._send(AckExit(container_id), [])

    async def shutdown(self) -> None:
        """Kill all containers and end the launcher; returns when nothing is left.

        One that hangs is killed: then, as where it is lost meanwhile, farcall.errors.ConnectionError says that what it
        had is left for the next one to sweep up.
        """
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._ask(Shutdown(self._seq()), Done)
        except TimeoutError:
            self.give_up()
            raise ServerConnectionError("the launcher did not end, and was killed") from None
        finally:
            self.close()

    def check(self, patience: float) -> None:
        """To be called now and then. A launcher that has given no sign of life for `patience` seconds, though it was
        asked for one, is killed, and lost."""
        now = self._loop.time()
        if self._asked_at is not None:
            if now - self._asked_at > patience:
                self.give_up()
                self._lost()
        elif now - self._heard_at > patience / 4:
            self._asked_at = now
            self._send(Hello(PROTOCOL_VERSION, os.getpid()), [])

    def give_up(self) -> None:
        """Kill the launcher: the next one sweeps up."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Leave; the launcher and its containers go on."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            for _, fds in self._out:
                descriptors.close(fds)
            self._out.clear()
            self._fail_all("the connection to the launcher was closed")

    # -- the connection

    async def _greet(self) -> None:
        self._send(Hello(PROTOCOL_VERSION, os.getpid()), [])
        hello = await self._hello
        if hello.version != PROTOCOL_VERSION:
            self.close()
            raise VersionError(
                f"the running launcher (pid {hello.pid}) speaks version {hello.version}, "
                f"this farcall {PROTOCOL_VERSION}; stop it with the farcall that started it "
                "(`farcall server stop`)"
            )
        self.launcher_pid = hello.pid

    def _seq(self) -> int:
        self._next_seq += 1
        return self._next_seq

    async def _ask(
        self,
        request: Start | Prepare | PrepareTree | Reattach | Signal | Exec | Measure | List | Shutdown,
        expected: type[_R],
        fds: "list[int] | None" = None,
    ) -> "tuple[_R, list[int]]":
        if self._closed:
            raise ServerConnectionError("the connection to the launcher is closed")
        answer: asyncio.Future[tuple[Reply, list[int]]] = self._loop.create_future()
        self._waiting[request.seq] = answer
        try:
            self._send(request, fds or [])
            reply, received = await answer
        except asyncio.CancelledError:
            # The answer may still come, with descriptors that nobody wants any more.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                descriptors.close(answer.result()[1])
            raise
        finally:
            self._waiting.pop(request.seq, None)
        if not isinstance(reply, expected):
            descriptors.close(received)
            raise InternalError(f"the launcher answered {type(request).__name__} with {type(reply).__name__}")
        return reply, received

    def _send(self, request: Request, fds: "list[int]") -> None:
        data = _encode(request)
        most = _MAX_EXEC if isinstance(request, Exec) else MAX_DATAGRAM
        if len(data) > most:
            what = "the command" if isinstance(request, Exec) else "the container's specification"
            raise InvalidError(f"{what} is {len(data)} bytes, more than {most}: shorten its environment")
        if self._out:
            self._out.append((data, [os.dup(fd) for fd in fds]))
            return
        try:
            descriptors.send(self._channel, data, fds)
        except BlockingIOError:
            self._out.append((data, [os.dup(fd) for fd in fds]))
            self._loop.add_writer(self._channel.fileno(), self._writable)
        except OSError:
            pass  # the end of file that follows fails whoever waits

    def _writable(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                descriptors.send(self._channel, data, fds)
            except BlockingIOError:
                return
            except OSError:
                break
            descriptors.close(fds)
            self._out.pop(0)
        self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        for _ in range(64):
            if self._closed:
                return
            try:
                data, fds = descriptors.receive(self._channel, MAX_DATAGRAM, _MAX_FDS)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # told once, ahead of what still waits to be read
            except OSError:
                data, fds = b"", list[int]()
            if not data:
                self._lost()
                return
            self._heard_at, self._asked_at = self._loop.time(), None
            self._take(_decode_reply(data), fds)

    def _take(self, reply: Reply, fds: "list[int]") -> None:
        match reply:
            case Hello():
                if not self._hello.done():
                    self._hello.set_result(reply)
            case Exited():
                self.on_exit(reply)
                self.acknowledge(reply.container_id)
            case ExecEnded():
                self.on_exec_end(reply)
            case TemplateState():
                self.on_template(reply)
            case Failed(seq=0):
                error = from_code(reply.code, reply.message)
                if not self._hello.done():
                    self._hello.set_exception(error)
                else:
                    self._fail_all(str(ProtocolError(reply.message)))
            case _:
                answer = self._waiting.get(reply.seq)
                if answer is None or answer.done():
                    if isinstance(reply, Started):  # a container that a former worker has asked for
                        signal.pidfd_send_signal(fds[0], signal.SIGKILL)
                    descriptors.close(fds)
                elif isinstance(reply, Failed):
                    answer.set_exception(from_code(reply.code, reply.message))
                else:
                    answer.set_result((reply, fds))

    def _lost(self) -> None:
        greeted = self._hello.done()
        self.close()
        if greeted:
            self.on_lost()

    def _fail_all(self, message: str) -> None:
        error = ServerConnectionError(message)
        if not self._hello.done():
            self._hello.set_exception(error)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)


def _ignore_exit(exited: Exited) -> None:
    """The default `on_exit`."""


def _ignore_exec_end(ended: ExecEnded) -> None:
    """The default `on_exec_end`."""


def _ignore_loss() -> None:
    """The default `on_lost`."""


def _try_connect(state_dir: Path) -> socket.socket | None:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(state_dir, os.O_PATH | os.O_CLOEXEC)
    try:
        # The state directory's own path may be too long for a socket's.
        channel.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        channel.setblocking(False)
        return channel
    except OSError as error:
        channel.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
            return None
        reason = os.strerror(error.errno or 0)
        raise ServerConnectionError(f"cannot connect to the launcher of {state_dir}: {reason}") from error
    finally:
        os.close(directory)


def _pidfd_of(channel: socket.socket) -> int:
    """A descriptor of the process that listens at the other end; -1 where it has just ended."""
    pid, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return "no log"
    return next((line for line in reversed(lines) if line.strip()), "no message")


def _start_launcher(
    state_dir: Path, idle_seconds: float | None, alone_seconds: float | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "farcall.launcher", "--state", str(state_dir)]
    if idle_seconds is not None:
        command += ["--idle", str(idle_seconds)]
    if alone_seconds is not None:
        command += ["--alone", str(alone_seconds)]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(state_dir / "launcher.log", "ab"))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
