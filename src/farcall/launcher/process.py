"""The launcher process: answers one worker at a time, makes containers, and tells how they end."""

import contextlib
import fcntl
import gc
import os
import re
import resource
import select
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

from farcall.launcher import cgroups, descriptors, namespaces, process_runtime, sandbox, seccomp, syscalls, template
from farcall.launcher.areas import Areas, Binds
from farcall.launcher.container import Container
from farcall.launcher.exec_requests import ExecRequests
from farcall.launcher.init import ROOT_STEP
from farcall.launcher.journal import Journal
from farcall.launcher.lazy import LazyMounts
from farcall.launcher.loop import Loop
from farcall.launcher.messages import (
    AckExit,
    Done,
    EndTemplate,
    Exec,
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
    Request,
    Shutdown,
    Signal,
    SignalExec,
    Start,
    Started,
    TemplateState,
    Usage,
)
from farcall.launcher.network import NetworkPool
from farcall.launcher.plan import Broken, Plan, Running
from farcall.launcher.templates import Template, Templates
from farcall.launcher.trees import Trees
from farcall.launcher.worker_link import WorkerLink
from farcall.settings.room import free_room, is_no_room
from farcall.spec.container import ContainerSpec

PROTOCOL_VERSION = "1"

LOCK_NAME = "launcher.lock"
DEFAULT_IDLE_SECONDS = 60.0  # without containers and worker, until the launcher ends itself
NO_ROOM_STATUS = 28  # with which it ends where the disk has no room for it to start

_LOCK_SECONDS = 10.0  # to wait for the janitor of a dead launcher
_HOUSEKEEPING = 1.0  # seconds between turns without events
_SOON = 0.01  # seconds until the next turn when there is something left to do
_MAX_PIDFDS = 200  # a message; the kernel takes 253
_MAX_EXITS = 500  # a message

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MIB = 1024 * 1024
# RLIMIT_FSIZE counts shared memory too, which values travel in: never below this.
_FILE_LIMIT_FLOOR = 4096 * _MIB


class AlreadyRunningError(Exception):
    """Another launcher holds the lock of this state directory."""


class Launcher:
    """One launcher of one state directory. `run` returns when it has ended."""

    def __init__(
        self, state: Path, idle_seconds: float = DEFAULT_IDLE_SECONDS, alone_seconds: float | None = None
    ) -> None:
        """Takes the lock, sweeps what a former launcher left, listens. Raises AlreadyRunningError.

        Containers are ended once there has been no worker for `alone_seconds`; None: they wait for the next one.
        """
        self._state = state.absolute()
        self._idle_seconds = idle_seconds
        self._alone_seconds = alone_seconds
        self._alone_since = time.monotonic()
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._open_files = _raise_open_files()
        self._place = namespaces.enter()
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self._journal = Journal(self._state / "journal")
        self._cgroups = cgroups.Cgroups(f"farcall-{name_of(self._state)}", self._state / "cgroups")
        self._journal.sweep(self._cgroups.leftovers(), Areas.directories(self._state))
        self._network = NetworkPool(self._state, self._place.rootless)
        self._network.sweep()
        self._filters: dict[tuple[bool, bool], bytes] = {}
        self._containers: dict[str, Container] = {}
        self._exits: dict[str, Exited] = {}
        self._closing: list[Container] = []  # dead, with a cgroup that the kernel still holds
        self._intermediates: set[int] = set()
        self._starting_in: dict[Template, deque[Container]] = {}  # asked of a template, not yet forked
        self._listed: tuple[list[str], int] = ([], 0)
        self._idle_since = time.monotonic()
        self._shutdown_seq: int | None = None
        self._ended = False
        self._loop = Loop()
        self._templates = Templates(
            self._loop, self._state, self._template_forked, self._template_lost, self._template_memory
        )
        self._areas = Areas(self._loop, self._state, self._lock, self._disk_exceeded)
        self._link = WorkerLink(self._loop, self._state, self._handle, self._worker_came)
        self._execs = ExecRequests(self._link)
        self._lazy = LazyMounts(self._loop, self._state)
        self._lazy.sweep()
        self._trees = Trees(self._loop, self._place, self._areas.directory, self._link.reply, self._lazy.begin_start)

    # -- life

    def run(self) -> None:
        """Serve until a Shutdown, or until idle for long enough."""
        refilling = False
        try:
            while not self._ended:
                busy = self._loop.turn(_SOON if self._closing or refilling else _HOUSEKEEPING)
                self._finish_closing()
                self._reap_intermediates()
                # After anything that happened a network may be missing from stock.
                refilling = busy or self._network.refill()
                self._journal.catch_up()
                if not busy:
                    self._templates.end_idle()
                self._end_if_alone()
                if self._shutdown_seq is not None and not self._containers and not self._closing:
                    self._ended = True
                elif self._link.connected or self._containers or self._closing:
                    self._idle_since = time.monotonic()
                elif time.monotonic() - self._idle_since > self._idle_seconds:
                    self._ended = True
        finally:
            self._close()

    def _end_if_alone(self) -> None:
        now = time.monotonic()
        if self._link.connected or self._alone_seconds is None:
            self._alone_since = now
        elif now - self._alone_since > self._alone_seconds:
            self._kill_all()

    def _kill_all(self) -> None:
        for container in self._containers.values():
            container.killed_by_us = True
            container.kill()

    def _close(self) -> None:
        self._link.stop_listening()
        self._templates.close()
        self._network.close()
        self._cgroups.close()
        self._lazy.close()
        self._areas.close()
        os.close(self._lock)
        self._link.close(None if self._shutdown_seq is None else Done(self._shutdown_seq))

    def _take_lock(self) -> int:
        fd = os.open(self._state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A launcher that was killed may have a janitor that is still carrying out its last orders.
                if _is_alive(os.pread(fd, 20, 0)) or time.monotonic() > deadline:
                    os.close(fd)
                    raise AlreadyRunningError(f"another launcher runs on {self._state}") from None
                time.sleep(0.005)
        # In place, where there was one: on a full disk there is room for no other.
        os.pwrite(fd, b"%-19d\n" % os.getpid(), 0)
        return fd

    # -- the worker

    def _worker_came(self) -> None:
        self._listed = ([], 0)

    def _handle(self, request: Request, fds: list[int]) -> None:
        match request:
            case Start():
                wanted = 4
            case Exec(terminal=None):
                wanted = 3
            case Reattach():
                wanted = 1
            case _:
                wanted = 0
        if len(fds) != wanted:
            descriptors.close(fds)
            message = f"{type(request).__name__} carries {wanted} descriptors, not {len(fds)}"
            self._link.reply(Failed(getattr(request, "seq", 0), "protocol", message))
            return
        match request:
            case Hello():
                self._link.reply(Hello(PROTOCOL_VERSION, os.getpid()))
                self._templates.tell()
            case Start():
                self._start(request.seq, request.spec, fds)
            case Prepare():
                self._prepare(request)
            case EndTemplate():
                self._templates.end(request.key)
            case PrepareTree() if self._place.refusal:
                self._link.reply(Failed(request.seq, "container-start", self._place.refusal))
            case PrepareTree():
                self._intermediates.add(self._trees.prepare(request))
            case Reattach():
                self._reattach(request, fds[0])
            case Signal():
                self._signal(request)
            case Exec():
                self._execs.start(self._containers.get(request.container_id), request, fds)
            case SignalExec():
                self._execs.signal(self._containers.get(request.container_id), request)
            case Measure():
                self._measure(request)
            case List():
                self._list(request.seq)
            case AckExit():
                self._exits.pop(request.container_id, None)
            case Shutdown():
                self._shutdown_seq = request.seq
                self._kill_all()

    # -- requests

    def _prepare(self, request: Prepare) -> None:
        found = self._templates.get(request.interpreter, retry=True)
        self._network.prepare()

        def tell(why: str | None) -> None:
            if why is None:
                self._link.reply(Done(request.seq))
            else:
                message = f"no base template: {why}; containers start by exec"
                self._link.reply(Failed(request.seq, "container-start", message))

        if isinstance(found, str):
            tell(found)
        else:
            self._templates.when_ready(found, tell)

    def _start(self, seq: int, spec: ContainerSpec, fds: list[int]) -> None:
        requested = time.monotonic()
        try:
            container = self._make(seq, spec, fds)
        except (_StartError, cgroups.CgroupError, OSError) as error:
            descriptors.close(fds)
            if isinstance(error, OSError) and is_no_room(error):
                self._link.reply(self._no_room(seq, spec.container_id, str(error)))
                return
            code = error.code if isinstance(error, _StartError) else "container-start"
            self._link.reply(Failed(seq, code, f"{spec.container_id}: {error}"))
            return
        container.requested = requested
        self._containers[container.id] = container
        self._loop.add(container.status.fileno(), lambda: self._hear_container(container))
        self._launch(container)

    def _make(self, seq: int, spec: ContainerSpec, fds: list[int]) -> Container:
        name = spec.container_id
        if not _ID.fullmatch(name):
            raise _StartError("invalid", f"{name!r} is no container id: letters, digits, '.', '_', '-', at most 63")
        if name in self._containers or name in self._exits:
            raise _StartError("already-exists", "a container with this id exists")
        if self._shutdown_seq is not None:
            raise _StartError("conflict", "the launcher is shutting down")
        native = spec.runtime == "native"
        if native and self._place.refusal:
            raise _StartError("container-start", self._place.refusal)
        if not native and (why := process_runtime.unsupported(spec)):
            raise _StartError("container-start", why)
        lazy = self._lazy.prepare(spec)
        area, made = self._areas.take(_binds(spec) if native else ())
        cgroup = self._cgroups.of(name)
        try:
            if cgroup:
                cgroup.create(spec.limits)
            lease = self._network.take(spec.block_network) if native else None
        except BaseException:
            self._discard(name, area, cgroup)
            raise
        for fd in fds[1:3] if native else ():
            with contextlib.suppress(OSError):  # so that /dev/stdout can be opened by the container's root
                os.fchown(fd, self._place.uid_map[0][1], self._place.gid_map[0][1])
        has_memory, has_pids = "memory" not in self._cgroups.missing, "pids" not in self._cgroups.missing
        limit = spec.limits.memory_limit
        writable = any(not bind.read_only for bind in spec.binds)
        plan = Plan(
            spec=spec,
            area=area,
            area_made=made and native and not spec.upper,
            uid_map=self._place.uid_map,
            gid_map=self._place.gid_map,
            cgroup_v1=cgroup.v1 if cgroup else [],
            cgroup_v2=cgroup.v2 if cgroup else None,
            seccomp=self._filter(
                not native and spec.block_network,
                # Builds install what belongs to several users, also where there is one only.
                bool(spec.command) and namespaces.has_one_id(self._place.uid_map),
            ),
            resolv_conf=lease.resolv_conf if lease else "",
            hosts=f"{lease.hosts}127.0.1.1\t{name}\n" if lease else "",
            has_idmap=native and self._place.idmap_fd is not None,
            own_userns=not syscalls.is_initial_user_namespace(),
            has_netns=lease is not None and lease.netns_fd is not None,
            data_limit=limit * _MIB if limit and not has_memory else None,
            process_limit=spec.limits.pids if not has_pids and native and _counts_by_namespace() else None,
            file_limit=None if writable else max(spec.limits.disk * _MIB, _FILE_LIMIT_FLOOR),
            open_files=self._open_files,
            lazy=lazy,
        )
        container = Container(seq, plan, fds, cgroup, lease)
        if lease and lease.note:
            container.notes.append(lease.note)
        if self._cgroups.missing:
            container.notes.append(self._missing_note(limit is not None))
        container.mark("cgroup")
        return container

    def _missing_note(self, memory_limited: bool) -> str:
        missing = ", ".join(self._cgroups.missing)
        note = f"no writable cgroup for {missing}: not limited or measured"
        if memory_limited and "memory" in self._cgroups.missing:
            note += "; the memory limit holds for each process by itself (RLIMIT_DATA)"
        return note

    def _filter(self, unix_sockets_only: bool, root_owns_all: bool) -> bytes:
        key = unix_sockets_only, root_owns_all
        if key not in self._filters:
            self._filters[key] = seccomp.assemble(
                syscalls.machine(), unix_sockets_only=unix_sockets_only, root_owns_all=root_owns_all
            )
        return self._filters[key]

    def _launch(self, container: Container) -> None:
        spec = container.plan.spec
        if spec.start == "exec" or spec.runtime == "process" or spec.root or spec.interpreter is None:
            self._fork_here(container)
            return
        variable = template.needs_exec(spec.env)
        found = self._templates.get(spec.interpreter) if variable is None else f"{variable} is set"
        if isinstance(found, Template):
            self._templates.when_ready(found, lambda why: self._fork_from(found, container, why))
        else:
            self._fork_here(container, found)

    def _fork_from(self, warm: Template, container: Container, why_not: str | None) -> None:
        if why_not is None:
            try:
                container.fork_from(warm.channel, self._place.idmap_fd)
                self._starting_in.setdefault(warm, deque()).append(container)
                return
            except OSError as error:
                why_not = os.strerror(error.errno or 0)
        self._fork_here(container, why_not)

    def _fork_here(self, container: Container, why: str | None = None) -> None:
        """Start by exec; `why` not by fork, where that was asked for."""
        if why is not None:
            container.notes.append(f"started by exec, not by fork: {why}")
        self._intermediates.add(container.fork_here(self._place.idmap_fd))
        container.let_go()

    def _template_forked(self, template: Template) -> None:
        self._starting_in[template].popleft().let_go()

    def _template_memory(self, key: str, memory: int) -> None:
        self._link.reply(TemplateState(key, memory))

    def _template_lost(self, lost: Template) -> None:
        for container in self._starting_in.pop(lost, ()):
            if container.pid is None and not container.dead:
                self._fork_here(container, "the template ended")
            container.let_go()

    def _reattach(self, request: Reattach, fd: int) -> None:
        container = self._containers.get(request.container_id)
        try:
            if container is None or not container.started:
                self._link.reply(Failed(request.seq, "not-found", f"no container {request.container_id} runs here"))
                return
            descriptors.send(container.lifeline, b"control", [fd], wait=False)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._link.reply(
                Failed(request.seq, "conflict", f"{request.container_id} does not take a connection: {reason}")
            )
        else:
            self._link.reply(Done(request.seq))
        finally:
            os.close(fd)

    def _signal(self, request: Signal) -> None:
        container = self._containers.get(request.container_id)
        if container is None:
            self._link.reply(Failed(request.seq, "not-found", f"no container {request.container_id} runs here"))
            return
        try:
            container.send_signal(request.signal)
        except (OSError, ValueError) as error:
            self._link.reply(Failed(request.seq, "conflict", f"{request.container_id} takes no signal: {error}"))
        else:
            self._link.reply(Done(request.seq))

    def _measure(self, request: Measure) -> None:
        usages: dict[str, Usage] = {}
        for name in request.container_ids:
            container = self._containers.get(name)
            if container is not None and container.cgroup is not None and container.started:
                usages[name] = Usage(*container.cgroup.measure())
        self._link.reply(Measured(request.seq, usages))

    def _list(self, seq: int) -> None:
        names, at = self._listed
        exits: list[Exited] = []
        if at == 0:
            names = [name for name, container in self._containers.items() if container.started]
            exits = list(self._exits.values())[:_MAX_EXITS]
        page = names[at : at + _MAX_PIDFDS]
        more = at + _MAX_PIDFDS < len(names)
        self._listed = (names, at + _MAX_PIDFDS) if more else ([], 0)
        live = [name for name in page if name in self._containers]
        pidfds = [fd for name in live if (fd := self._containers[name].pidfd) is not None]
        self._link.reply(Listed(seq, live, exits, more), pidfds)

    # -- containers

    def _hear_container(self, container: Container) -> None:
        had_pid, had_started = container.pid is not None, container.started
        reports, ended = container.reports()
        if not had_pid and container.pid is not None and container.pidfd is not None:
            self._loop.add(container.pidfd, lambda: self._init_died(container))
            if container.killed_by_us:
                container.kill()
        for report, fds in reports:
            self._execs.hear(container, report, fds)
            descriptors.close(fds)
            if isinstance(report, Running) and not had_started:
                assert container.pid is not None and container.pidfd is not None
                steps, notes = container.steps(), container.notes
                self._link.reply(Started(container.seq, container.id, container.pid, steps, notes), [container.pidfd])
                self._settle(container)
        if ended:
            self._loop.remove(container.status.fileno())
            if container.pid is None:
                self._bury(container)  # the intermediate failed before there was an init

    def _init_died(self, container: Container) -> None:
        assert container.pid is not None and container.pidfd is not None
        self._loop.remove(container.pidfd)
        self._intermediates.add(container.pid)  # not ours to reap before the intermediate has ended
        self._hear_container(container)
        self._bury(container)

    def _bury(self, container: Container) -> None:
        if container.dead:
            return
        container.dead = True
        self._execs.end(container)
        self._loop.remove(container.status.fileno())
        self._reap_intermediates()
        self._closing.append(container)
        self._finish_closing()

    def _finish_closing(self) -> None:
        for container in list(self._closing):
            if not container.exit:
                container.exit = container.exited()
            if container.plan.spec.runtime == "process" and not self._is_empty(container):
                continue
            if container.cgroup and not container.cgroup.remove():
                continue
            self._closing.remove(container)
            self._containers.pop(container.id, None)
            if container.lease:
                self._network.give_back(container.lease)
            self._discard(container.id, container.plan.area, None)
            if container.started:
                self._exits[container.id] = container.exit
                self._link.reply(container.exit)
            else:
                self._link.reply(self._start_failure(container))
            container.close()

    def _is_empty(self, container: Container) -> bool:
        """Kill what a container without a pid namespace left; True once nothing is left."""
        killed = process_runtime.kill_outliving(container.id)
        self._intermediates.update(killed)  # orphans come to this subreaper
        container.empty_scans = 0 if killed else container.empty_scans + 1
        return container.empty_scans > 1

    def _start_failure(self, container: Container) -> Failed:
        broken = container.broken
        if broken is not None and broken.step == ROOT_STEP and is_no_room(broken):
            return self._no_room(container.seq, container.id, _plain(broken))
        if broken is None and not container.killed_by_us and not (container.exit and container.exit.out_of_memory):
            return Failed(container.seq, "container-crashed", f"{container.id} was killed while it was made")
        return Failed(container.seq, "container-start", f"{container.id}: {self._why(container)}")

    def _no_room(self, seq: int, container_id: str, why: str) -> Failed:
        room = f"{free_room(self._state)} under {self._state}; free some space there"
        return Failed(seq, "resource-exhausted", f"{container_id}: {why} ({room})")

    def _why(self, container: Container) -> str:
        broken = container.broken
        if container.killed_by_us:
            return "killed before it had started"
        if broken is None:
            assert container.exit is not None
            return f"out of memory while it was made: raise its limit of {container.exit.memory_limit // _MIB} MiB"
        return namespaces.explain(broken.step, broken.errno, broken.message) if broken.errno else _plain(broken)

    def _settle(self, container: Container) -> None:
        """What a container needs once it runs, off the way of its start."""
        assert container.pid is not None
        paths = container.cgroup.paths if container.cgroup else []
        self._journal.write(container.id, container.plan.area, paths, [container.pid])
        spec = container.plan.spec
        self._areas.watch(container.id, spec.upper or container.plan.area, spec.limits.disk * _MIB)
        if spec.runtime == "native" and not spec.upper:
            self._areas.restock(_binds(spec), (self._place.uid_map[0][1], self._place.gid_map[0][1]))

    def _discard(self, name: str, area: str, cgroup: cgroups.Cgroup | None) -> None:
        """Remove a container's cgroup, area and journal entry."""
        if cgroup:
            cgroup.remove()
        self._areas.delete(name, area)
        self._journal.remove(name)

    def _disk_exceeded(self, container_id: str) -> None:
        container = self._containers.get(container_id)
        if container is not None and container.ended is None:
            container.disk_exceeded = True
            container.kill()

    def _reap_intermediates(self) -> None:
        for pid in list(self._intermediates):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                # A dead init whose intermediate has not ended yet is ours in a moment; others are reaped elsewhere.
                if not os.path.exists(f"/proc/{pid}"):
                    self._intermediates.discard(pid)
                continue
            if ended:
                self._intermediates.discard(pid)


class _StartError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _plain(broken: Broken) -> str:
    return f"the container could not be made: {broken.step}: {broken.message}"


def _is_alive(pid: bytes) -> bool:
    """The process that a lock file names lives, and is not just waiting to be reaped."""
    try:
        pidfd = os.pidfd_open(int(pid))
    except (ValueError, OSError):
        return not pid.strip()  # empty: it has taken the lock this moment
    ended, _, _ = select.select([pidfd], [], [], 0)
    os.close(pidfd)
    return not ended


def _binds(spec: ContainerSpec) -> Binds:
    if spec.root is not None:
        return None
    return tuple((bind.source, bind.target) for bind in sandbox.all_binds(spec))


def name_of(state: Path) -> str:
    """A short name for a state directory, unique on this machine."""
    import hashlib

    return hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:12]


def _raise_open_files() -> tuple[int, int]:
    """Take as many descriptors as allowed (four a container), and return what was set, for the containers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def _counts_by_namespace() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts within the user namespace, not all the user's processes."""
    major, minor = (int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return (major, minor) >= (5, 14)


def main(arguments: list[str]) -> int:
    """`python -m farcall.launcher --state DIR [--idle SECONDS] [--alone SECONDS]`"""
    import argparse

    parser = argparse.ArgumentParser(prog="farcall.launcher")
    parser.add_argument("--state", type=Path, required=True, help="state directory")
    parser.add_argument("--idle", type=float, default=DEFAULT_IDLE_SECONDS, help="end after so many idle seconds")
    parser.add_argument("--alone", type=float, help="end containers that have had no worker for so many seconds")
    options: Any = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's signals are for the worker
    try:
        launcher = Launcher(options.state, options.idle, options.alone)
    except AlreadyRunningError:
        return 0
    except OSError as error:
        if not is_no_room(error):
            raise
        return NO_ROOM_STATUS
    syscalls.set_process_name("farcall-launch")
    gc.collect()
    gc.freeze()  # forked containers share these pages with the launcher for as long as no collection writes to them
    launcher.run()
    return 0
