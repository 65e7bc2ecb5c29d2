"""The client: this process's connection to the server.

There is one for each process. In a user's program it connects to the embedded server's socket, and starts the server
where none listens; in a container it is the runner's connection. No thread belongs to it.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import msgspec

from farcall import errors
from farcall.sdk import shared_memory
from farcall.spec.function import AppSpec, FunctionSpec
from farcall.version import __version__
from farcall.wire import builds, descriptors, messages, processors
from farcall.wire.connection import Connection, Waiter
from farcall.wire.execs import ExecOutput, ExecTaken
from farcall.wire.memory import INLINE_LIMIT, from_memory, to_memory

__all__ = ["Client"]

CONNECT_TIMEOUT = 20.0  # seconds, for a server that is starting


class Receiver(Protocol):
    """What the client hands a call's messages to. Called by whichever thread is reading; must not block."""

    def receive(self, message: Any, fds: tuple[int, ...]) -> None: ...

    def lose(self, error: errors.ConnectionLostError) -> None: ...


class _Reply(Receiver):
    """The answer to one request."""

    __slots__ = ("fds", "message", "waiter")

    def __init__(self, waiter: Waiter | None = None) -> None:
        self.waiter = waiter or Waiter()
        self.message: Any = None
        self.fds: tuple[int, ...] = ()

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        self.message, self.fds = message, fds
        self.waiter.set()

    def lose(self, error: errors.ConnectionLostError) -> None:
        self.message = error
        self.waiter.set()

    def answer(self) -> Any:
        """The message, with a body that came in a memory file in it. Raises the error that it is."""
        answer = checked(self.message)
        if isinstance(answer, messages.Done) and answer.descriptors:
            answer.body = from_memory(self.fds[0])
            descriptors.close_all(self.fds)
            self.fds = ()
        return answer


class Request:
    """A request that was sent. `wait`, `wait_async` or `drop` ends it."""

    def __init__(self, client: Client, seq: int, reply: _Reply) -> None:
        self._client = client
        self._seq = seq
        self._reply = reply

    def wait(self) -> tuple[Any, tuple[int, ...]]:
        """The answer and what descriptors came along. Raises the error that it is, or ConnectionLostError."""
        try:
            self._client.connection.wait(self._reply.waiter)
        finally:
            self._client.end(self._seq)
        return self._reply.answer(), self._reply.fds

    async def wait_async(self) -> tuple[Any, tuple[int, ...]]:
        """`wait`, awaited."""
        try:
            await self._client.connection.wait_async(self._reply.waiter)
        finally:
            self._client.end(self._seq)
        return self._reply.answer(), self._reply.fds

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        self._client.end(self._seq)
        descriptors.close_all(self._reply.fds)


class Client:
    """Calls, requests and their answers over one connection. All methods may be used from any thread."""

    def __init__(self) -> None:
        self.connection: Connection
        self.server: messages.Welcome | None = None
        self.url = ""  # where the server is, "" on this machine
        self.on_entries: Callable[[messages.LogBatch | messages.AppStats], None] | None = None
        self.map_memory: int | None = None  # the setting, once it has been asked for
        self._seqs = itertools.count(1)
        self._replies: dict[int, Receiver] = {}
        self._calls: dict[str, Receiver] = {}
        self._announced: set[str] = set()  # variants

    @classmethod
    def adopt(cls, connection: Connection) -> Client:
        """The client of a runner: its connection carries calls as well. The runner's handler passes on to `handle`
        what is not its own."""
        client = cls()
        client.connection = connection
        return client

    @classmethod
    def connect(cls, sock: socket.socket) -> Client:
        """Says hello over a fresh socket. Raises VersionError where the server does not understand this version."""
        client = cls()
        client.connection = Connection(sock, messages.ToClient, client.handle, client.lose)
        client.connection.spins = processors.are_several()
        welcome = _Reply()
        client._replies[0] = welcome
        client.connection.send(messages.Hello(messages.PROTOCOL_VERSION, __version__, "client", os.getpid()))
        if not client.connection.wait(welcome.waiter, CONNECT_TIMEOUT):
            client.connection.close()
            raise errors.ConnectionError(
                f"the farcall server does not answer within {CONNECT_TIMEOUT:.0f} s; see `farcall server logs`, "
                "or end it with `farcall server stop --force`"
            )
        client._replies.pop(0, None)
        answer = welcome.answer()
        assert isinstance(answer, messages.Welcome)
        client.server = answer
        return client

    # --- messages

    def handle(self, message: Any, fds: tuple[int, ...]) -> None:
        """Takes one message of the server. Ends no wait but that of whom the message is for."""
        match message:
            case messages.Outputs(seq=0, call_id=call_id) | messages.Items(call_id=call_id):
                receiver = self._calls.get(call_id)
            case messages.CallWaiting(call_id=call_id):
                receiver = self._calls.get(call_id)
            case messages.LogBatch() | messages.AppStats():
                if self.on_entries is not None:
                    self.on_entries(message)
                return
            case messages.Welcome():
                receiver = self._replies.get(0)
            case (
                messages.Done(seq=seq)
                | messages.Failed(seq=seq)
                | messages.Pending(seq=seq)
                | messages.Outputs(seq=seq)
                | builds.BuildEvent(seq=seq)
                | ExecOutput(seq=seq)
                | ExecTaken(seq=seq)
            ):
                receiver = self._replies.get(seq)
            case _:  # a frame this version refused: nobody can be waiting for it by name
                receiver = None
        if receiver is None:
            descriptors.close_all(fds)
        else:
            receiver.receive(message, fds)

    def lose(self, error: errors.ConnectionLostError) -> None:
        """The connection is over: everyone who waits is told."""
        for receiver in [*self._replies.values(), *self._calls.values()]:
            receiver.lose(error)

    def open_call(self, call_id: str, receiver: Receiver) -> None:
        """From now on messages of this call go to `receiver`."""
        self._calls[call_id] = receiver

    def close_call(self, call_id: str) -> None:
        """Nobody wants this call's messages any more."""
        self._calls.pop(call_id, None)

    def announce(self, variant: messages.AddVariant) -> None:
        """Makes the server know a variant, before something is asked of it."""
        if variant.function_id not in self._announced:
            self.connection.send(variant)
            self._announced.add(variant.function_id)

    # --- requests

    def request(self, make: Callable[[int], Any], fds: tuple[int, ...] = ()) -> tuple[Any, tuple[int, ...]]:
        """Sends the request that `make` builds for a sequence number; returns its answer and what descriptors came
        along.

        Raises the error the server answered with, or ConnectionLostError.
        """
        return self.start(make, fds).wait()

    def start(self, make: Callable[[int], Any], fds: tuple[int, ...] = ()) -> Request:
        """Sends as `request` does, and does not wait for the answer."""
        return Request(self, *self._begin(make, fds))

    async def request_async(self, make: Callable[[int], Any], fds: tuple[int, ...] = ()) -> tuple[Any, tuple[int, ...]]:
        """`request`, awaited."""
        return await self.start(make, fds).wait_async()

    def request_each(self, makes: Sequence[Callable[[int], Any]]) -> Generator[tuple[int, Any, tuple[int, ...]]]:
        """Sends all the requests; yields position, answer and descriptors of each when it comes.

        Raises as `request` does, as soon as an answer says so.
        """
        waiter = Waiter()
        outstanding: dict[int, tuple[int, _Reply]] = {}
        try:
            for position, make in enumerate(makes):
                outstanding[position] = self._begin(make, (), waiter)
            while outstanding:
                waiter.clear()
                for position, (seq, reply) in list(outstanding.items()):
                    if reply.message is not None:
                        del outstanding[position], self._replies[seq]
                        yield position, reply.answer(), reply.fds
                if outstanding:
                    self.connection.wait(waiter)
        finally:
            for seq, reply in outstanding.values():
                self._replies.pop(seq, None)
                descriptors.close_all(reply.fds)

    def begin(self, make: Callable[[int], Any], fds: tuple[int, ...], receiver: Receiver) -> int:
        """Sends a request whose answers go to `receiver`, until `end` of the number returned."""
        seq = next(self._seqs)
        self._replies[seq] = receiver
        try:
            self.connection.send(make(seq), fds)
        except BaseException:
            del self._replies[seq]
            raise
        return seq

    def end(self, seq: int) -> None:
        """Nobody waits for answers to that request any more."""
        self._replies.pop(seq, None)

    def _begin(
        self, make: Callable[[int], Any], fds: tuple[int, ...], waiter: Waiter | None = None
    ) -> tuple[int, _Reply]:
        reply = _Reply(waiter)
        return self.begin(make, fds, reply), reply

    # --- apps

    def create_app(self, app: AppSpec) -> None:
        """Makes the app's functions callable."""
        for make, fds in _creations(app):
            try:
                self.request(make, fds)
            finally:
                descriptors.close_all(fds)
        _running[app.app_id] = app

    async def create_app_async(self, app: AppSpec) -> None:
        """`create_app`, awaited."""
        for make, fds in _creations(app):
            try:
                await self.request_async(make, fds)
            finally:
                descriptors.close_all(fds)
        _running[app.app_id] = app

    def stop_app(self, app_id: str, grace: float) -> messages.StopReport:
        """Ends the app; returns when nothing of it is left. `grace` is the seconds that exit hooks get."""
        _running.pop(app_id, None)
        shared_memory.release_kept()
        answer, _ = self.request(lambda seq: messages.StopApp(seq, app_id, grace))
        return msgspec.msgpack.decode(answer.body, type=messages.StopReport)

    async def stop_app_async(self, app_id: str, grace: float) -> messages.StopReport:
        """`stop_app`, awaited."""
        _running.pop(app_id, None)
        shared_memory.release_kept()
        answer, _ = await self.request_async(lambda seq: messages.StopApp(seq, app_id, grace))
        return msgspec.msgpack.decode(answer.body, type=messages.StopReport)

    def lookup(self, function_id: str) -> FunctionSpec:
        """The spec of a function by its id. Raises NotFoundError."""
        answer, _ = self.request(lambda seq: messages.Lookup(seq, function_id))
        return msgspec.msgpack.decode(answer.body, type=FunctionSpec)

    def status(self) -> messages.StatusReport:
        """What the server is doing."""
        answer, _ = self.request(messages.ServerStatus)
        return msgspec.msgpack.decode(answer.body, type=messages.StatusReport)

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()


def checked(message: Any) -> Any:
    """An answer. Raises the error that it is, where it is one."""
    if isinstance(message, messages.Failed):
        failure = message.failure
        error = errors.from_code(failure.code, failure.message)
        if isinstance(error, errors.ConnectionLostError):
            error.may_have_run = failure.may_have_run
        elif isinstance(error, errors.ImageBuildError):
            error.step, error.command, error.last_lines = failure.step, failure.command, failure.last_lines
        raise error
    if isinstance(message, errors.ConnectionLostError):
        raise errors.ConnectionLostError(f"{message}; see `farcall server logs`")
    return message


def _creations(app: AppSpec) -> list[tuple[Callable[[int], messages.CreateApp], tuple[int, ...]]]:
    """The CreateApp messages that hand over an app, each small enough for a frame."""
    groups: list[tuple[list[FunctionSpec], list[int]]] = [([], [])]
    size = 0
    for function in app.functions:
        pickled = function.source.pickled
        fds = groups[-1][1]
        if pickled is not None and len(pickled) > INLINE_LIMIT // 2:
            fd = to_memory(pickled)
            function = msgspec.structs.replace(function, source=msgspec.structs.replace(function.source, pickled=b""))
        else:
            fd = None
        length = len(msgspec.msgpack.encode(function))
        if groups[-1][0] and (size + length > 2 * INLINE_LIMIT or len(fds) == 32):
            groups.append(([], []))
            size = 0
        size += length
        groups[-1][0].append(function)
        if fd is not None:
            groups[-1][1].append(fd)

    def creation(functions: list[FunctionSpec], count: int) -> Callable[[int], messages.CreateApp]:
        part = msgspec.structs.replace(app, functions=tuple(functions))
        return lambda seq: messages.CreateApp(seq, part, count)

    return [(creation(functions, len(fds)), tuple(fds)) for functions, fds in groups]


# --- one for each process

_lock = threading.Lock()
_current: Client | None = None
_in_container = False
_running: dict[str, AppSpec] = {}  # the apps this process runs


def let_go(app_id: str) -> None:
    """The app goes on without this process."""
    _running.pop(app_id, None)


def disconnect() -> None:
    """Ends this process's connection, where there is one; what is asked next makes another. Raises ConflictError while
    an app runs on it."""
    if _running:
        names = ", ".join(app.name for app in _running.values())
        raise errors.ConflictError(f"this process runs an app ({names}); leave its `with app.run():` first")
    if _current is not None:
        _current.close()


def current() -> Client:
    """This process's client, connected. Starts the embedded server where none listens.

    Raises ConnectionError where that fails; the message names the log that says why.
    """
    global _current
    client = _current
    if client is not None:
        # The server may have ended since the last call: with a look now nothing is sent that could not arrive.
        client.connection.poll()
        if not client.connection.closed:
            return client
    with _lock:
        if _current is None or _current.connection.closed:
            if _in_container:
                raise errors.ConnectionError(
                    "calls from a container are made by the process that runs the function; this is one of "
                    "its children, which have no connection to farcall"
                )
            _current = connect_or_start()
            # After a restart of the server: it knows the apps, and must know whose they are.
            for app in list(_running.values()):
                _current.create_app(app)
        return _current


def use(client: Client) -> None:
    """In a runner: makes its client the process's."""
    global _current, _in_container
    _current, _in_container = client, True


def connect_existing() -> Client | None:
    """A client of the server that is running now, None where there is none. One elsewhere is connected to, and runs."""
    from farcall import settings

    if server_url():
        return connect_or_start()
    sock = _dial(str(settings.paths().server_socket))
    return None if sock is None else Client.connect(sock)


def server_url() -> str:
    """Where the server is that this process uses: "ssh://...", or "" for this machine."""
    from farcall.sdk.embedded import program_settings

    return program_settings().server or ""


def connect_or_start() -> Client:
    """A client of the running server, else of one that is started for it."""
    from farcall import settings
    from farcall.sdk import elsewhere, embedded

    url = server_url()
    path, log = settings.paths().server_socket, settings.paths().server_log
    if url:
        path, log = elsewhere.link_socket(url), settings.paths().link_log
    deadline = time.monotonic() + CONNECT_TIMEOUT
    given: dict[str, str] = {}
    while True:
        given = ({} if url else embedded.passed_on()) or given  # it may be replaced, which ends it in good order
        sock = _dial(str(path))
        if sock is None:
            if url:
                elsewhere.start_link(url)
            else:
                embedded.start_server(given)
            sock = _dial(str(path))
        if sock is not None:
            try:
                client = Client.connect(sock)
            except errors.ConnectionLostError:
                client = None  # it was ending itself as we came
            if client is not None:
                client.url = url
                if _usable(client):
                    if url:
                        elsewhere.tell_of_cuts(url, path, client.connection)
                    return client
        if time.monotonic() > deadline:
            raise errors.ConnectionError(f"the farcall server at {url or path} accepts no connection; see {log}")
        time.sleep(0.01)


def _usable(client: Client) -> bool:
    """Whether to stay with this server. One of another version, whose files were edited, or with other simulated GPUs
    than are asked for, is replaced when idle."""
    server = client.server
    assert server is not None
    same_version = server.version == __version__
    wanted = _simulated_gpus()
    same_gpus = wanted in ("", server.simulated_gpus)
    if same_version and same_gpus and not _edited(server.source):
        return True
    if client.url and same_gpus:  # the other end of the link has replaced it, if it could
        client.close()
        raise errors.VersionError(
            f"the server at {client.url} is farcall {server.version} ({server.prefix}), this is {__version__}, and it "
            "has work to do: wait until it is idle, or end what it runs"
        )
    try:
        client.request(lambda seq: messages.StopServer(seq, False))
    except errors.ConflictError as error:
        if same_version and same_gpus:
            return True
        client.close()
        busy = (
            f"It cannot be replaced now: {error}. Wait until it is idle, or end what it runs with "
            "`farcall server stop --force`"
        )
        if not same_version:
            raise errors.VersionError(
                f"the running server is farcall {server.version} ({server.prefix}), this is {__version__}. {busy}"
            ) from None
        has = f"the GPUs {server.simulated_gpus}" if server.simulated_gpus else "no GPUs"
        raise errors.ConflictError(f"the running server simulates {has}, and not {wanted}. {busy}") from None
    except errors.ConnectionLostError:
        pass  # it ended before it could answer
    client.close()
    return False


def _simulated_gpus() -> str:
    """The GPUs that the server is to pretend to have, in the form of `Welcome`; "": whatever there are."""
    from farcall.spec.gpu import format_simulated, parse_simulated

    text = os.environ.get("FARCALL_SIMULATE_GPU", "")
    return format_simulated(parse_simulated(text)) if text else ""


def _edited(running: str) -> bool:
    """Whether the farcall that a server runs is this one, as it was before an edit or a reinstallation."""
    from farcall.interpreters import private

    ours = private.source()
    return ours != running and ours.rpartition("@")[0] == running.rpartition("@")[0] != ""


def _dial(path: str) -> socket.socket | None:
    if not hasattr(socket, "AF_UNIX"):
        raise errors.UnimplementedError("this system has no Unix sockets; use `farcall run --local FILE`")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise errors.ConnectionError(f"cannot connect to the farcall server at {path}: {error}") from error
    return sock


def _after_fork_in_child() -> None:
    """A child must not speak on its parent's connection; it makes its own when it needs one."""
    global _current, _lock
    _lock = threading.Lock()
    client, _current = _current, None
    _running.clear()
    if client is not None:
        client.connection.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def warn(message: str) -> None:
    """Shows one line of the client's to the user."""
    warnings.warn(message, errors.FarcallWarning, stacklevel=3)
