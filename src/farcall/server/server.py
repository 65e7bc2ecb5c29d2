"""The embedded server: control plane and worker of one machine in one process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from farcall import errors, interpreters
from farcall.builder.builder import Builder
from farcall.builder.containers import StepContainers
from farcall.builder.elsewhere import Elsewhere
from farcall.content.store import Store
from farcall.interpreters import private
from farcall.server import capacity
from farcall.server.app import App
from farcall.server.call import Call
from farcall.server.definitions import Definitions
from farcall.server.execs import Execs
from farcall.server.fleet import HERE, Fleet
from farcall.server.images import ImageBuilds
from farcall.server.inspection import Inspection
from farcall.server.logs import Logs
from farcall.server.overload import Overload
from farcall.server.pool import Pool
from farcall.server.scaler import EXIT_GRACE
from farcall.server.secrets import Secrets
from farcall.server.session import Session, process_exists
from farcall.server.spawned import Spawned
from farcall.server.templates import Templates
from farcall.server.testing import Testing
from farcall.server.uploads import Uploads
from farcall.server.volumes import VolumeRequests
from farcall.server.workers import Workers
from farcall.settings import Paths, Settings, flags
from farcall.spec.container import Interpreter
from farcall.spec.function import AppSpec, FunctionSpec
from farcall.spec.gpu import format_simulated
from farcall.state.store import StateStore
from farcall.version import __version__
from farcall.wire import messages
from farcall.wire.lingering import Lingering
from farcall.wire.page import SharedPage
from farcall.wire.transport import Transport
from farcall.worker import offer
from farcall.worker.container import Container, End
from farcall.worker.filesystems import Filesystems
from farcall.worker.gpus import Gpus
from farcall.worker.worker import Worker

WAITING_SECONDS = 1.0  # after which a caller is told why it waits
WAITING_LOOKED_AT = 256  # inputs of a pool, each time
HOUSEKEEPING_SECONDS = 1.0
EXPIRY_SECONDS = 600.0
ACCEPT_PAUSE = 0.2  # seconds without accepting connections after that failed
HELLO_SECONDS = 5.0  # after which a connection that has not said hello is ended
FIRST_EXPIRY_SECONDS = 2.0  # a server that is used for moments only would never look otherwise
ADOPTION_SECONDS = 60.0  # that an ephemeral app waits, after a restart, for the program that runs it
FAILED_CALLS_KEPT = 10_000


class Server:
    """Apps, calls and containers. Everything happens on one event loop."""

    def __init__(
        self, paths: Paths, settings: Settings, idle_seconds: float, gpus: Gpus, *, testing: bool = False
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.testing = Testing(self, allowed=testing)
        self.log = logging.getLogger("farcall.server")
        self.paths = paths
        self.server_id = f"sr-{os.urandom(8).hex()}"
        self.store = StateStore(paths.state, results_seconds=settings.results_kept, results_bytes=settings.results_size)
        self.definitions = Definitions(self.store)
        self.secrets = Secrets(self.store)
        self.fleet = Fleet(self.now)
        self.logs = Logs(paths.state / "logs", self.loop)
        self.overload = Overload(self, settings)
        self.spawned = Spawned(self)
        self.inspection = Inspection(self)
        self.execs = Execs(self)
        content = Store(paths.content)
        self.worker = Worker(paths.launcher_state, self.server_id, self.logs.add_raw, Filesystems(content))
        self.clock = self.worker.clock
        self.worker.gpus = gpus
        if settings.own_worker:
            self.fleet.add_worker(HERE, capacity.of(offer.of_this_machine(paths.state, gpus)))
        builds = paths.cache / "builds"
        elsewhere = Elsewhere(content, settings.object_store, settings.object_store_endpoint)
        steps = StepContainers(self.worker, builds)
        builder = Builder(content, steps, builds, elsewhere=elsewhere, mounts=settings.own_worker)
        self.images = ImageBuilds(builder, content)
        self.worker.find_root = self.images.root
        self.volumes = VolumeRequests(content, self.loop.run_in_executor, builder.tidier)
        self.uploads = Uploads(content, self.loop.run_in_executor)
        self.worker.environment = self.secrets.environment
        self.worker.find_volumes = self.volumes.mounted
        self.worker.on_tick = self.tick
        self.workers = Workers(self, content, settings)
        self.worker.on_template = Templates(self.fleet, self.worker.end_template).changed
        self.apps: dict[str, App] = {}
        self.functions: dict[str, App] = {}
        self.calls: dict[str, Call] = {}
        self.failed_calls: OrderedDict[str, str] = OrderedDict()  # call to app, the newest ones
        self._settings = settings
        self._idle_seconds = idle_seconds
        self._source = private.source()
        self._simulated = format_simulated(gpus.counts()) if gpus.is_simulated else ""
        self._started_at = time.monotonic()
        self._idle_since = self.now()
        self._expire_at = self.now() + FIRST_EXPIRY_SECONDS
        self._sessions: set[Session] = set()
        self._container_sessions: dict[str, Session] = {}
        self._stats_wanted: dict[str, list[Session]] = {}
        self._stats_sent: dict[str, messages.AppStats] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._stopped = asyncio.Event()
        self.lingering = Lingering(self.loop)
        self._listener: socket.socket | None = None

    def now(self) -> float:
        """Monotonic seconds, of the clock for what happens to apps."""
        return self.clock.now()

    def wait(self, seconds: float, then: Callable[..., None], *args: Any) -> None:
        """Calls `then` after so long. In a test nobody waits: the clock moves."""
        if self.testing.allowed:
            self.clock.advance(seconds)
            seconds = 0.0
        self.loop.call_later(seconds, then, *args)

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_at

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs `work` in the background; what it raises is logged."""
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("background task failed", exc_info=task.exception())

    # --- life

    async def serve(self, ready: Any) -> None:
        """Serves until it is stopped or has been idle for long. `ready` is called when connections are accepted."""
        await self.worker.open()
        await self.workers.open()
        await self._resume()
        path = str(self.paths.server_socket)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(128)
        listener.setblocking(False)
        self.loop.add_reader(listener.fileno(), self._accept)
        self.loop.call_later(HOUSEKEEPING_SECONDS, self._housekeep)
        self.images.go_on()
        self.volumes.look_back()
        ready()
        try:
            await self._stopped.wait()
        finally:
            flags.forget(self.paths.state)  # before those who are connected look for another server
            self.loop.remove_reader(listener.fileno())
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            listener.close()
            await self._close()

    async def _close(self) -> None:
        for app in list(self.apps.values()):
            if app.mode == "ephemeral":
                await self.definitions.set_state(app.app_id, "stopped")
            else:
                # The next server takes up what it has not done; nothing more is started, and nothing fails, here.
                app.stopping = True
        for session in list(self._sessions):
            session.disconnect()
        await self.images.close()
        await self.workers.close()
        await self.worker.close()
        if self._background:
            await asyncio.wait(self._background, timeout=5)
        self.volumes.close()
        self.uploads.close()
        self.paths.leave_runtime()
        await self.store.close()
        await self.loop.run_in_executor(None, self.logs.store.close)

    def stop(self) -> None:
        """Ends serving."""
        self.loop.call_soon(self._stopped.set)

    def busy_reason(self, besides: Session | None = None) -> str:
        """What the server has to do, in words; "" where it is idle."""
        running = [
            app for app in self.apps.values() if not (app.mode == "detached" and app.idle and not app.spawned_pending)
        ]
        if running:
            names = ", ".join(f"{app.name} ({app.app_id})" for app in running[:3])
            return f"{len(running)} running: {names}"
        others = len(self._sessions) - (besides in self._sessions)
        return f"{others} other connections" if others and besides is None else ""

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Most likely no descriptors are left; the loop would call again at once, for ever.
                self.log.error("accept failed: %s", error)
                self.loop.remove_reader(self._listener.fileno())
                self.loop.call_later(ACCEPT_PAUSE, self._listen_again)
                return
            pid, uid, _ = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (os.getuid(), 0):
                sock.close()
                continue
            self._welcome(sock, pid)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self.loop.add_reader(self._listener.fileno(), self._accept)

    def _welcome(self, sock: socket.socket, pid: int) -> None:
        session: Session

        def on_message(message: Any, fds: tuple[int, ...]) -> None:
            if isinstance(message, messages.Hello):
                self._hello(session, message)
            else:
                session.handle(message, fds)

        transport = Transport(sock, messages.FromClient, on_message, lambda: session.close())
        session = Session(self, transport)
        session.pid = pid
        self._sessions.add(session)

    def _hello(self, session: Session, hello: messages.Hello) -> None:
        if hello.protocol > messages.PROTOCOL_VERSION or hello.protocol < messages.PROTOCOL_VERSION - 1:
            # Welcomed all the same: the client sees the versions, and may ask an idle server to make room.
            session.incompatible = (
                f"this server is farcall {__version__} with protocol {messages.PROTOCOL_VERSION}, the client is "
                f"farcall {hello.version} with protocol {hello.protocol}: use the same farcall for both, or end the "
                "server with `farcall server stop --force`"
            )
            self.log.warning("%s", session.incompatible)
        session.greeted = True
        session.send(
            messages.Welcome(
                messages.PROTOCOL_VERSION,
                __version__,
                self.server_id,
                sys.prefix,
                os.getpid(),
                self._source,
                self._simulated,
            )
        )

    def session_closed(self, session: Session) -> None:
        """A connection is over."""
        self._sessions.discard(session)
        self.logs.forget(session)
        self.spawned.forget(session)
        self.execs.forget(session)
        for listeners in self._stats_wanted.values():
            if session in listeners:
                listeners.remove(session)
        for app in list(self.apps.values()):
            if app.owner is session:
                app.owner = None
                if app.mode == "ephemeral":
                    self.spawn(self.stop_app(app.app_id, EXIT_GRACE))

    # --- apps

    async def create_app(self, spec: AppSpec, session: Session) -> None:
        """Makes an app's functions callable. One that is known gets its owner and further functions."""
        app = self.apps.get(spec.app_id)
        new = app is None
        self.images.keep(spec.app_id, spec.functions)
        if app is None:
            app = App(self, spec.app_id, spec.name, spec.mode, session)
            self.apps[spec.app_id] = app
        app.owner, app.client_pid = session, session.pid
        for function in spec.functions:
            app.functions[function.function_id] = function
            self.functions[function.function_id] = app
        if new:
            for interpreter in {
                function.interpreter
                for function in spec.functions
                if function.interpreter is not None and not function.image_id  # which brings its own
            }:
                self.workers.prepare(interpreter)
        if spec.functions:
            self.spawn(self.definitions.keep(app))
        if app.owner is session and session not in self._sessions:
            # The client went away while we were at it.
            self.spawn(self.stop_app(app.app_id, EXIT_GRACE))
        app.keep_warm(spec.functions)

    async def on_this_machine(self, function: FunctionSpec) -> FunctionSpec:
        """A function that names no path to its interpreter, as its program is on another machine, with this machine's.

        Raises InvalidError where that cannot read what the program sends.
        """
        wanted = function.interpreter
        if wanted is None or wanted.executable or function.image_id:
            return function
        found = await self.loop.run_in_executor(None, _own_interpreter)
        minors = [".".join(each.version.split(".")[:2]) for each in (wanted, found)]
        if function.source.pickled is not None and minors[0] != minors[1]:
            raise errors.InvalidError(
                f"{function.name} is sent by value, from Python {minors[0]} to this machine's {minors[1]}, which "
                "cannot read it: give it an image, or define it in a module"
            )
        return msgspec.structs.replace(function, interpreter=found)

    async def stop_app(self, app_id: str, grace: float) -> messages.StopReport:
        """Ends an app; returns when nothing of it is left. Asked twice, the second time ends it at once."""
        app = self.apps.get(app_id)
        if app is None:
            return messages.StopReport(0, 0)
        containers = app.containers
        if app.stopping:
            app.kill()
            await app.stop(0)
            return messages.StopReport(containers, 0)
        cancelled = 0
        for call in list(self.calls.values()):
            if call.pool.app is app and call.kind != "spawned":
                cancelled += self._cancel_with_app(call)
        cancelled += app.spawned_pending
        self.spawn(self.spawned.cancel_app(app_id))
        await app.stop(grace)
        for function_id in app.functions:
            self.functions.pop(function_id, None)
        self.apps.pop(app_id, None)
        self.images.forget(app_id)
        self._send_stats(app)
        self._stats_wanted.pop(app_id, None)
        self._stats_sent.pop(app_id, None)
        self.spawned.forget_app(app_id)
        recorded = self._record_stop(app_id)
        if app.mode == "ephemeral":
            # Its program does not wait for a busy disk: should the server die now, the next one takes up no ephemeral
            # app whose program is gone.
            self.spawn(recorded)
        else:
            await recorded
        return messages.StopReport(containers, cancelled)

    def _cancel_with_app(self, call: Call) -> int:
        """The call's app stops: whoever waits for it is told."""
        count = len(call.inputs)
        self.end_call(call, f"app {call.pool.app.name} was stopped while {call.pool.function.name} was running")
        return count

    def end_call(self, call: Call, why: str) -> None:
        """Cancels a call in memory; whoever waits for it is told."""
        error = errors.InputCancelledError(why)
        for one in list(call.inputs.values()):
            container = one.container
            call.pool.fail(one, error)
            if container is not None:
                container.cancel(one, SharedPage.CANCELLED, self.now())

    async def _record_stop(self, app_id: str) -> None:
        """An app is over: the next server knows, and who waits for its spawned calls, too."""
        await self.definitions.set_state(app_id, "stopped")
        await self.spawned.cancel_app(app_id)

    async def _resume(self) -> None:
        """Takes up the apps that ran when an earlier server ended."""
        for record in await self.definitions.kept():
            mode = "detached" if record.state == "detached" else "ephemeral"
            if mode == "ephemeral" and not process_exists(record.client_pid or 0):
                self.spawn(self._record_stop(record.app_id))
                continue
            spec = self.definitions.open(record)
            if spec is None:
                continue
            app = self.apps[record.app_id] = App(self, record.app_id, record.name, mode, None)
            app.client_pid = record.client_pid or 0
            app.recorded = True
            app.scalings = {(one.function_id, one.params): one.scaling for one in spec.scalings}
            for function in spec.functions:
                app.functions[function.function_id] = function
                self.functions[function.function_id] = app
            try:
                app.keep_warm(spec.functions)
            except errors.FarcallError as error:
                self.log.error("containers of app %s are not kept warm: %s", app.app_id, error)
            if mode == "ephemeral":
                self.loop.call_later(ADOPTION_SECONDS, self._end_orphan, app)
        self.spawn(self.spawned.resume())
        self.images.forget_all_but(self.apps)

    def _end_orphan(self, app: App) -> None:
        if app.owner is None and self.apps.get(app.app_id) is app:
            if process_exists(app.client_pid):
                self.loop.call_later(ADOPTION_SECONDS, self._end_orphan, app)
            else:
                self.spawn(self.stop_app(app.app_id, EXIT_GRACE))

    async def app_id_of(self, name: str) -> str:
        """The newest app of that name. Raises NotFoundError with the nearest names."""
        import difflib

        apps = await self.store.apps()
        for record in reversed(apps):
            if record.name == name:
                return record.app_id
        near = difflib.get_close_matches(name, {record.name for record in apps}, 3, 0.5)
        hint = (
            f"; did you mean {', '.join(near)}?"
            if near
            else ": give an app's name, or an id that starts with ap-, fc- or ta-"
        )
        raise errors.NotFoundError(f"there is no app {name!r}{hint}")

    # --- containers and calls

    def container_session(self, container: Container) -> Session:
        """The session in which a container's own calls are answered."""
        session = self._container_sessions.get(container.container_id)
        if session is None:
            assert container.transport is not None
            session = Session(self, container.transport, container.app_id, container.container_id)
            session.mounted = container.volumes
            self._container_sessions[container.container_id] = session
        return session

    def forget_container(self, container: Container, end: End) -> None:
        """It is gone, and with it what its code waited for."""
        self.inspection.gone(container, end)
        session = self._container_sessions.pop(container.container_id, None)
        if session is not None:
            session.close()

    def deliver(self, call: Call, outputs: list[messages.Output], fds: list[int]) -> None:
        """Results go to whoever called."""
        if call.failed:
            self.failed_calls[call.call_id] = call.app_id
            if len(self.failed_calls) > FAILED_CALLS_KEPT:
                self.failed_calls.popitem(last=False)
        if call.session is None:
            self.spawned.deliver(call, outputs, fds)
            return
        _send_outputs(call.session, call.call_id, outputs, fds)
        self.lingering.answer(is_lone=self.is_lone(call))
        if not call.inputs:
            call.session.call_done(call)

    def is_lone(self, call: Call) -> bool:
        """Whether somebody waits for it, and no other call is being run."""
        return call.kind == "remote" and len(self.calls) == 1

    # --- time

    def tick(self) -> None:
        """What time brings to apps."""
        now = self.now()
        self.fleet.schedule()
        for app in list(self.apps.values()):
            for pool in list(app.pools.values()):
                pool.tick(now)
                if pool.waiting:
                    self._tell_waiting(pool, now)
            self._send_stats(app)

    def _tell_waiting(self, pool: Pool, now: float) -> None:
        told: set[str] = set()
        # There may be a million of them; those in front have waited longest.
        for one in itertools.islice(pool.waiting, WAITING_LOOKED_AT):
            call = one.call
            if call.session is None or call.call_id in told or now - one.waiting_since < WAITING_SECONDS:
                continue
            told.add(call.call_id)
            if now - call.told_waiting >= WAITING_SECONDS:
                call.told_waiting = now
                call.session.send(messages.CallWaiting(call.call_id, pool.scaler.waiting_reason(now)))

    def _housekeep(self) -> None:
        self.loop.call_later(HOUSEKEEPING_SECONDS, self._housekeep)
        now = self.now()
        for app in list(self.apps.values()):
            for pool in list(app.pools.values()):
                if pool.waiting:
                    pool.dispatch()
                    self._tell_waiting(pool, now)  # here as well: without a container anywhere nothing ticks
            if app.finished:
                self.spawn(self.stop_app(app.app_id, EXIT_GRACE))
        if (
            self._sessions
            or self.busy_reason()
            or self.images.is_pushing
            or self.fleet.awaits_workers  # which would have nobody to come back to
            or any(app.mode == "detached" for app in self.apps.values())
        ):
            self._idle_since = now
        elif now - self._idle_since > self._idle_seconds:
            self.log.info("idle for %.0f s: ending", now - self._idle_since)
            self.stop()
        for session in [one for one in self._sessions if not one.greeted and now - one.created_at > HELLO_SECONDS]:
            session.end(f"it said nothing for {HELLO_SECONDS:g} s")
        if now >= self._expire_at:
            self._expire_at = now + EXPIRY_SECONDS
            self.spawn(self.store.expire())

    def subscribe_stats(self, app_id: str, session: Session) -> None:
        """The session wants to know how the app is doing."""
        self._stats_wanted.setdefault(app_id, []).append(session)
        self._stats_sent.pop(app_id, None)

    def _send_stats(self, app: App) -> None:
        wanted = self._stats_wanted.get(app.app_id)
        if not wanted:
            return
        stats = messages.AppStats(
            app.app_id,
            app.containers,
            app.containers_started,
            app.inputs_done,
            app.inputs_failed,
            app.start_seconds,
            app.run_seconds,
        )
        if stats != self._stats_sent.get(app.app_id):
            self._stats_sent[app.app_id] = stats
            for session in wanted:
                session.send(stats)

    # --- asking

    def status(self) -> messages.StatusReport:
        """What the server is doing."""
        reports = [
            messages.AppReport(
                app.app_id,
                app.name,
                app.state,
                sum(not function.variant_of for function in app.functions.values()),
                app.containers,
                sum(pool.backlog for pool in app.pools.values()),
                sum(container.holds for pool in app.pools.values() for container in pool.containers),
            )
            for app in self.apps.values()
        ]
        return messages.StatusReport(
            __version__,
            sys.prefix,
            os.getpid(),
            self.uptime,
            reports,
            len(self.workers.containers),
            sum(report.pending for report in reports),
            sum(report.running for report in reports),
            len(self._sessions),
            self.worker.gpus.counts(),
            self.worker.gpus.is_simulated,
            self.overload.whole.inputs,
            self.overload.whole.bytes,
            *self.overload.whole.bound,
            self.workers.states(),
            self._settings.shown_of_server(),
            self.workers.shut_out,
        )

    async def over(self, ref: str, session: Session) -> None:
        """Returns when the app, call or container that `ref` names is over, or the session is."""
        while session in self._sessions:
            if (
                ref not in self.apps
                and ref not in self.calls
                and all(c.container_id != ref for c in self.workers.containers)
                and not (ref.startswith("fc-") and await self.spawned.is_pending(ref))
            ):
                return
            await asyncio.sleep(0.1)


def _send_outputs(session: Session, call_id: str, outputs: list[messages.Output], fds: list[int]) -> None:
    """Sends results in as few frames as hold them."""
    size = sum(len(output.data) for output in outputs)
    if size <= _OUTPUTS_BYTES and len(fds) <= _OUTPUTS_FDS:
        session.send(messages.Outputs(call_id, outputs), fds)
        return
    part: list[messages.Output] = []
    part_fds: list[int] = []
    size = position = 0
    for output in outputs:
        if part and (size + len(output.data) > _OUTPUTS_BYTES or len(part_fds) >= _OUTPUTS_FDS):
            session.send(messages.Outputs(call_id, part), part_fds)
            part, part_fds, size = [], [], 0
        part.append(output)
        part_fds.extend(fds[position : position + output.descriptors])
        position += output.descriptors
        size += len(output.data)
    session.send(messages.Outputs(call_id, part), part_fds)


_OUTPUTS_BYTES = 200 * 1024
_OUTPUTS_FDS = 48


def _own_interpreter() -> Interpreter:
    """The Python that this server's environment was made of."""
    return interpreters.probe(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
