"""The worker: the containers of one machine.

It asks the launcher for containers, speaks with their runners, reads their output, watches their time and knows when
they are gone. What they run is their owner's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from farcall import errors, mounts
from farcall.content.lease import Lease
from farcall.launcher.client import ContainerFds, LauncherClient
from farcall.launcher.messages import Exited, TemplateState, Usage
from farcall.spec.container import ContainerSpec, Interpreter, Limits, MountMode, TreeMount
from farcall.spec.function import FunctionSpec, TreeRef
from farcall.version import __version__
from farcall.wire import messages
from farcall.wire.descriptors import close_all
from farcall.wire.memory import INLINE_LIMIT, to_memory
from farcall.wire.transport import Transport
from farcall.wire.volumes import MountedVolume
from farcall.worker.clock import Clock
from farcall.worker.command import Commands, Ended
from farcall.worker.container import Container, End, Owner, State
from farcall.worker.execs import ExecProcess, Execs
from farcall.worker.filesystems import Filesystems, Root
from farcall.worker.gpus import Gpus
from farcall.worker.limit import BURST, RATE, OutputLimit
from farcall.worker.pipes import OutputPipe

TICK_SECONDS = 0.1
HELLO_SECONDS = 60.0  # how long a container that was made may take until its runner speaks
PRINT_COST = 1024  # bytes that a printed piece of text costs besides its length
PRINT_MARGIN = 1.5  # runners keep to the rate themselves; those that do not are not to be told from jitter below this
LAUNCHER_ATTEMPTS = 8  # launchers killed in a row before they are asked anything, until that is an error
# Seconds without a sign of life after which a launcher is replaced; its containers go with it.
LAUNCHER_PATIENCE = float(os.environ.get("FARCALL_LAUNCHER_PATIENCE", "60"))
LOST_SECONDS = 2.0  # how long a container may live on without its connection, or its connection without it

_SIMULATED = "its GPUs are simulated (--simulate-gpu): it was placed as if they were there, and has no device"

OnText = Callable[[Container, str, str], None]


class Given(NamedTuple):
    """What a container is made from, where its owner knows it: its image, and the volumes in their current version."""

    root: Root | None
    volumes: tuple[MountedVolume, ...]


class Worker:
    """Makes containers and keeps them. One event loop."""

    def __init__(
        self,
        launcher_state: Path,
        server_id: str,
        on_text: OnText,
        filesystems: Filesystems,
        alone_seconds: float | None = None,
    ) -> None:
        """`alone_seconds` is how long containers may outlive this process; None: until the next one ends them."""
        self._alone_seconds = alone_seconds
        self._launcher_state = launcher_state
        self._server_id = server_id
        self._on_text = on_text
        self._filesystems = filesystems
        self._launcher: LauncherClient | None = None
        self._connecting = asyncio.Lock()
        self._mount_mode: MountMode | None = None  # once the launcher has said it
        self._containers: dict[str, Container] = {}
        self._commands = Commands()
        self._execs = Execs()
        self._background: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.clock = Clock()
        self.gpus = Gpus()
        self.find_root: Callable[[str], Root] = _no_images
        self.environment: Callable[[FunctionSpec], Awaitable[dict[str, str]]] = _own_environment
        self.find_volumes: Callable[[FunctionSpec], Awaitable[tuple[MountedVolume, ...]]] = _no_volumes
        self.on_tick: Callable[[], None] = lambda: None
        self.on_template: Callable[[str, int], None] = lambda key, memory: None  # that has come (MiB), or gone (0)
        self._templates: set[str] = set()

    @property
    def containers(self) -> list[Container]:
        """All containers that are not gone."""
        return list(self._containers.values())

    @property
    def launcher_pid(self) -> int:
        """The launcher's process, 0 while there is none."""
        return 0 if self._launcher is None else self._launcher.launcher_pid

    async def open(self) -> None:
        """Connects to the launcher, starting it where none runs, and ends what an earlier worker left behind."""
        await self._connected()

    async def _connected(self) -> LauncherClient:
        async with self._connecting:
            attempts = LAUNCHER_ATTEMPTS
            while self._launcher is None:
                attempts -= 1
                launcher = await LauncherClient.connect(self._launcher_state, alone_seconds=self._alone_seconds)
                launcher.on_exit = self._exited
                launcher.on_exec_end = self._execs.ended
                launcher.on_lost = self._launcher_lost
                launcher.on_template = self._template_state
                try:
                    left, _ = await launcher.list()
                except errors.ConnectionError:
                    if not attempts:
                        raise
                    continue  # it was killed just then
                # An earlier worker's containers hold inputs that this one knows nothing of.
                for live in left:
                    if live.container_id not in self._containers:
                        signals.pidfd_send_signal(live.pidfd, signals.SIGKILL)
                    os.close(live.pidfd)
                self._launcher = launcher
            return self._launcher

    async def close(self) -> None:
        """Ends all containers at once, and the launcher."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for _ in range(2):
            try:
                # Also where there is none any more: the next one sweeps up what the last one left.
                launcher = await self._connected()
                launcher.on_lost = lambda: None
                launcher.on_template = lambda state: None
                await launcher.shutdown()
                return
            except errors.ConnectionError:
                self._launcher = None
            except errors.FarcallError:
                return

    async def prepare_tree(self, lease: Lease, tree_id: str) -> TreeMount:
        """A tree of the content store, ready to be mounted by this worker's launcher. The lease keeps it from then on.

        Raises NotFoundError for one that is not in the store, and what `farcall.mounts.prepare` raises.
        """
        lease.keep_tree(tree_id)
        found = None if self._mount_mode is None else mounts.prepared(lease.store, tree_id, self._mount_mode)
        if found is not None:
            return found
        launcher = await self._connected()
        answer = await launcher.prepare_tree(str(lease.store.root), lease.id, tree_id)
        self._mount_mode = answer.mode
        return answer.mount

    def prepare(self, interpreter: Interpreter) -> None:
        """Warms the base template of an interpreter, in the background."""

        async def prepare() -> None:
            with contextlib.suppress(errors.FarcallError):
                await (await self._connected()).prepare(interpreter)

        self._spawn(prepare())

    async def run(self, spec: ContainerSpec, on_text: Callable[[str], None]) -> Ended:
        """Runs a container that is a command, to its end: see `Commands.run`."""
        return await self._commands.run(await self._connected(), spec, on_text)

    # --- looking in

    async def measure(self) -> dict[str, Usage]:
        """What the containers use, by id; those that no cgroup measures are left out."""
        return await (await self._connected()).measure(list(self._containers))

    async def start_exec(
        self,
        container_id: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        workdir: str = "",
        terminal: tuple[int, int] | None = None,
    ) -> ExecProcess:
        """Starts a command in a container, on pipes or a terminal of (rows, columns). Once its end has been seen,
        `forget_exec`. Raises NotFoundError, ConflictError and InvalidError."""
        return await self._execs.start(await self._connected(), container_id, command, environment, workdir, terminal)

    def signal_exec(self, process: ExecProcess, number: int) -> None:
        """Signals a command and its process group; one that has ended is no error."""
        if self._launcher is not None:
            self._launcher.signal_exec(process.container_id, process.exec_id, number)

    def forget_exec(self, process: ExecProcess) -> None:
        """A command's end has been seen."""
        self._execs.forget(process)

    # --- starting

    def start(
        self,
        container_id: str,
        app_id: str,
        function: FunctionSpec,
        params: bytes,
        owner: Owner,
        gpus: tuple[int, ...] = (),
        given: Given | None = None,
    ) -> Container:
        """Makes a container in the background, with the GPUs of these numbers. Its owner hears of it when it is loaded,
        or gone. What is `given` is not asked for."""
        container = Container(self, container_id, app_id, function, params, owner, self.clock.now(), gpus)
        if gpus and self.gpus.is_simulated:
            container.notes = [_SIMULATED]
        self._containers[container_id] = container
        self._spawn(self._start(container, given))
        self._tick_soon()
        return container

    async def _start(self, container: Container, given: Given | None) -> None:
        function = container.function
        theirs: list[int] = []
        try:
            control, stdout, stderr = self._open_ends(container, theirs)
            if given is not None:
                root, container.volumes = given
            else:
                root = self.find_root(function.image_id) if function.image_id else None
                container.volumes = await self.find_volumes(function) if function.volumes else ()
            if root is None:
                _check_interpreter(function)
            container.mounted = await self._filesystems.take(
                root, (*function.trees, *map(_tree_of, container.volumes)), self.prepare_tree
            )
            container.on_mounted()
            launcher = await self._connected()
            environment = await self.environment(function)
            asked = self.clock.now() - container.created_at
            container.add_steps({"asked": asked})
            started = await launcher.start(
                msgspec.structs.replace(
                    _container_spec(container, root, environment, self._server_id, self.gpus),
                    imports=self._filesystems.imports(container.mounted, _entry(function)),
                ),
                ContainerFds(control=control, stdout=stdout, stderr=stderr, page=container.page_fd),
            )
        except (errors.FarcallError, OSError) as error:
            container.error = (
                error
                if isinstance(error, errors.FarcallError)
                else errors.ContainerStartError(f"no container could be made for {function.name}: {error}")
            )
            if container.transport is not None:
                container.transport.close()
            self._gone(container)
            return
        finally:
            close_all(theirs)
        if container.state is State.GONE:
            close_all((started.pidfd,))
            return
        container.pidfd = started.pidfd
        container.add_steps({step: asked + at for step, at in started.timeline.items()})
        container.notes = [*started.notes, *container.notes]
        if container.doomed:
            self.kill(container, container.reason)
        elif container.state is State.STARTING:
            container.kill_at = self.clock.now() + HELLO_SECONDS
            if container.said_hello:
                self._load(container)

    def _open_ends(self, container: Container, theirs: list[int]) -> tuple[int, int, int]:
        """Opens connection and pipes. The container's ends of them are returned, and put into `theirs` one by one."""
        ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.append(control.detach())
        container.transport = transport = Transport(
            ours,
            messages.FromRunner,
            lambda message, fds: self._message(container, message, fds),
            lambda: self._disconnected(container),
        )
        container.prints = OutputLimit(
            transport.pause,
            transport.resume,
            lambda text: self._on_text(container, "stderr", text),
            rate=PRINT_MARGIN * RATE,
            burst=PRINT_MARGIN * BURST,
        )
        for stream in ("stdout", "stderr"):
            read, write = os.pipe()
            theirs.append(write)
            OutputPipe(read, lambda text, stream=stream: self._on_text(container, stream, text), lambda: None)
        return theirs[0], theirs[1], theirs[2]

    def _message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        match message:
            case messages.Hello():
                container.said_hello = True
                if container.pidfd >= 0:  # else `_start` goes on, once it has what is to be told of this container
                    self._load(container)
            case messages.Loaded(seconds=seconds, error=error):
                if container.state is not State.LOADING:
                    return
                now = self.clock.now()
                container.ready_at = container.idle_since = now
                container.start_seconds = now - container.created_at
                container.add_steps({"load": container.start_seconds - seconds, "ready": container.start_seconds})
                container.kill_at = 0.0
                if error is None:
                    container.state = State.READY
                else:
                    container.take_no_more()
                    container.reported_error = True
                    container.reason = "its import or enter hook failed"
                    container.kill_at = now + LOST_SECONDS
                container.owner.on_loaded(container, error)
            case messages.Imported(paths=paths):
                if container.mounted is not None:
                    self._filesystems.keep_imports(container.mounted, _entry(container.function), paths)
            case messages.Print(text=text):
                if container.prints is None or container.prints.admit(len(text) + PRINT_COST):
                    container.owner.on_message(container, message, fds)
            case _:
                container.owner.on_message(container, message, fds)

    def _load(self, container: Container) -> None:
        if container.state is not State.STARTING or container.transport is None:
            return
        container.state = State.LOADING
        container.add_steps({"hello": self.clock.now() - container.created_at})
        # Its environment it has already.
        function = container.function.without_secrets()
        container.kill_at = self.clock.now() + function.startup_timeout
        fds: tuple[int, ...] = ()
        pickled = function.source.pickled
        if pickled is not None and len(pickled) > INLINE_LIMIT:
            fds = (to_memory(pickled),)
            function = msgspec.structs.replace(function, source=msgspec.structs.replace(function.source, pickled=b""))
        container.transport.send(
            messages.Welcome(messages.PROTOCOL_VERSION, __version__, self._server_id, "", os.getpid())
        )
        container.transport.send(
            messages.Load(
                container.app_id,
                function,
                container.params,
                len(fds),
                container.volumes,
                tells_imports=self._filesystems.wants_imports(container.mounted, _entry(function)),
            ),
            fds,
        )
        container.owner.on_made(container)

    # --- running

    def signal(self, container: Container, number: int) -> None:
        """Sends a signal to the runner; one that is gone is no error."""

        async def send() -> None:
            with contextlib.suppress(errors.FarcallError):
                await (await self._connected()).signal(container.container_id, number)

        self._spawn(send())

    def kill(self, container: Container, reason: str) -> None:
        """Ends a container at once; it is not blamed on its inputs."""
        container.reason = container.reason or reason
        container.doomed = True
        container.take_no_more()  # dying takes a moment
        if container.pidfd >= 0:
            try:
                signals.pidfd_send_signal(container.pidfd, signals.SIGKILL)
                return
            except OSError:
                pass
        self.signal(container, signals.SIGKILL)

    def _tick_soon(self) -> None:
        if self._ticking is None and self._containers:
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = self.clock.now()
        if self._launcher is not None:
            self._launcher.check(LAUNCHER_PATIENCE)
        for container in self.containers:
            for timed_out in container.check_time(now):
                container.owner.on_timeout(timed_out.token)
            if container.kill_at and now >= container.kill_at:
                container.kill_at = now + LOST_SECONDS
                if container.transport is not None and container.transport.closed and not container.reason:
                    container.severed = not container.lost
                    self.kill(container, "")
                    continue
                if container.state is State.STARTING:
                    container.error = errors.ContainerStartError(
                        f"the Python of {container.function.name} did not come up within {HELLO_SECONDS:g} s: "
                        f"{container.function.interpreter and container.function.interpreter.executable}"
                    )
                elif container.state is State.LOADING:
                    container.error = errors.StartupTimeoutError(
                        f"{container.function.name} was not ready within {container.function.startup_timeout:g} s "
                        f"(startup_timeout): importing {container.function.source.module} and its enter hooks took "
                        "longer"
                    )
                self.kill(container, "it did not end in time")
        self.on_tick()
        self._tick_soon()

    # --- ending

    def _exited(self, exited: Exited) -> None:
        container = self._containers.get(exited.container_id)
        if container is None:
            self._commands.exited(exited)
            return
        container.exited = exited
        if container.transport is None or container.transport.closed:
            self._gone(container)
        else:
            # Its last results may still lie in the socket; the end of the stream comes after them.
            self._loop.call_later(LOST_SECONDS, container.transport.close)

    def _disconnected(self, container: Container) -> None:
        if container.exited is not None or container.lost:
            self._gone(container)
        elif container.state is not State.GONE:
            container.kill_at = self.clock.now() + LOST_SECONDS

    def end_template(self, key: str) -> None:
        """Ends a base template, whose memory is wanted; `on_template` tells when it has ended."""
        if self._launcher is not None:
            self._launcher.end_template(key)

    def _template_state(self, state: TemplateState) -> None:
        if bool(state.memory) == (state.key in self._templates):
            return  # told again
        (self._templates.add if state.memory else self._templates.discard)(state.key)
        self.on_template(state.key, state.memory)

    def _launcher_lost(self) -> None:
        """The launcher died, and its containers with it or soon after it."""
        self._launcher = None
        self._commands.lost()
        self._execs.lost()
        for container in self.containers:
            container.lost = True
            if container.pidfd >= 0:
                with contextlib.suppress(OSError):
                    signals.pidfd_send_signal(container.pidfd, signals.SIGKILL)
            if container.transport is None or container.transport.closed:
                self._gone(container)
            else:
                self._loop.call_later(LOST_SECONDS, container.transport.close)
        for key in list(self._templates):
            self._template_state(TemplateState(key, 0))

    def _gone(self, container: Container) -> None:
        if self._containers.pop(container.container_id, None) is None:
            return
        started, unstarted = container.split()
        reason = container.reason
        if not reason and not container.severed and container.exited is not None and container.exited.killed_by_us:
            reason = "its launcher ended"
        if container.mounted is not None:
            self._filesystems.give_back(container.mounted)
        end = End(container.exited, reason, container.lost, container.error, container.severed)
        container.close()
        container.owner.on_gone(container, end, started, unstarted)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _check_interpreter(function: FunctionSpec) -> None:
    assert function.interpreter is not None
    if not os.path.exists(function.interpreter.executable):
        raise errors.ContainerStartError(
            f"{function.name} runs with {function.interpreter.executable}, which is gone: its environment was "
            "deleted or moved. Make it again, or choose another Python with --python"
        )


def _no_images(image_id: str) -> Root:
    raise errors.NotFoundError(f"there is no image {image_id} here")


async def _own_environment(function: FunctionSpec) -> dict[str, str]:
    """Without anybody who knows stored secrets."""
    return function.env


async def _no_volumes(function: FunctionSpec) -> tuple[MountedVolume, ...]:
    raise errors.NotFoundError(f"{function.name}: there are no volumes here")


def _entry(function: FunctionSpec) -> str:
    """What is imported depends on that."""
    return f"{function.source.module}:{function.source.qualname}"


def _tree_of(volume: MountedVolume) -> TreeRef:
    # Also a read-only one is written to, by the runner, where it is reloaded.
    return TreeRef(volume.version, volume.path, writable=True, written_at=volume.written_at)


def _container_spec(
    container: Container, root: Root | None, environment: dict[str, str], server_id: str, gpus: Gpus
) -> ContainerSpec:
    function = container.function
    assert container.mounted is not None
    cpu_request, cpu_limit = function.cpu
    memory_request, memory_limit = function.memory
    limits = Limits(
        cpu_request=cpu_request, cpu_limit=cpu_limit, memory_request=memory_request, memory_limit=memory_limit
    )
    variables = {**(root.env if root else {}), **environment}
    if function.disk is not None:
        limits = msgspec.structs.replace(limits, disk=function.disk)
    return ContainerSpec(
        container_id=container.container_id,
        interpreter=root.interpreter if root else function.interpreter,
        limits=limits,
        binds=function.binds + gpus.binds_for(container.gpus, image=root is not None),
        env={
            **variables,
            **gpus.environment_for(container.gpus, variables, image=root is not None),
            "FARCALL_CONTAINER_ID": container.container_id,
            "FARCALL_APP_ID": container.app_id,
            "FARCALL_SERVER_ID": server_id,
        },
        runtime=function.runtime,
        block_network=function.block_network,
        cwd=function.workdir or (root.workdir if root and root.workdir != "/" else "/root"),
        root=container.mounted.root,
        trees=container.mounted.trees,
        entrypoint=root.entrypoint if root else (),
    )
