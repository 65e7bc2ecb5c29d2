"""A container of another machine, as the server sees it: what it was given is known here, what it does is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.cluster.ends import LocalEnd
from farcall.cluster.exec_relay import ExecRelay
from farcall.launcher.messages import Exited
from farcall.spec.function import FunctionSpec
from farcall.wire import cluster, messages
from farcall.wire.descriptors import close_all
from farcall.wire.execs import ExecOutput, ExecTaken
from farcall.wire.memory import INLINE_LIMIT, to_memory
from farcall.wire.page import SharedPage
from farcall.wire.transport import Transport
from farcall.worker.container import CANCEL_GRACE, Assignment, Container, End, State

if TYPE_CHECKING:
    from farcall.cluster.machine import Machine
    from farcall.worker.container import Owner
    from farcall.worker.exec_streams import Peer
    from farcall.worker.worker import Given


class AssumedPage(SharedPage):
    """What the page of a container elsewhere is taken to say. Its own machine knows, and decides what follows from it;
    here it tells how long inputs have been running, and whose output is whose."""

    def __init__(self) -> None:
        self.slots = self.SLOTS
        self._seq = 0
        self._since = 0.0

    def start(self, seq: int, now: float) -> None:
        self._seq, self._since = seq, now

    @property
    def started(self) -> int:
        return self._seq

    @property
    def started_at(self) -> float:
        return self._since

    def cancel(self, seq: int, reason: int) -> None:
        """Its machine is told by a message."""

    def close(self) -> None:
        """There is nothing to let go of."""


class Way(LocalEnd):
    """A container's channel. Who serves its runner's requests here ends the container by closing it; its machine closes
    it when the container is gone, which it tells first."""

    def __init__(self) -> None:
        super().__init__(cluster.OfContainer)
        self.on_given_up: Callable[[], None] = lambda: None
        self.on_cut: Callable[[], None] = lambda: None
        self.is_given_up = False  # what its runner asks is not answered any more

    def send(self, message: Any, fds: Sequence[int] = (), *, counts: bool = True) -> None:
        if self.is_given_up:
            close_all(fds)
            return
        # Inputs are the server's to bound, which does so for all that are in its memory.
        super().send(message, fds, counts=not isinstance(message, messages.Run))

    def close(self, *, after_flush: bool = False) -> None:
        if not self.is_given_up:
            self.on_given_up()
            self.is_given_up = True

    def cut(self) -> None:
        LocalEnd.close(self)
        self.on_cut()


class Mirror(Container):
    """A container on a `Machine`. To its pool it is one as any other, but that what has not started is taken back by
    and by (`Owner.on_taken_back`)."""

    def __init__(
        self,
        machine: Machine,
        container_id: str,
        app_id: str,
        function: FunctionSpec,
        params: bytes,
        owner: Owner,
        now: float,
        gpus: tuple[int, ...] = (),
    ) -> None:
        super().__init__(machine, container_id, app_id, function, params, owner, now, gpus, AssumedPage())
        self.machine = machine
        self.where = machine.name
        self.way = Way()
        self.way.on_message = self._take
        self.way.on_given_up = lambda: self.kill("it did not keep to the protocol")
        self.way.on_refusals = machine.misbehaves
        self.way.on_cut = lambda: self.gone(End(None, f"worker {machine.name} does not know it", lost=True))
        self.transport: Transport | None = self.way  # pyright: ignore[reportAttributeAccessIssue]
        self._together = self._concurrent or function.batching is not None
        self._asked_back: set[int] = set()
        self._execs: dict[int, ExecRelay] = {}
        self._started = False  # its machine has been told to make it

    @property
    def is_reachable(self) -> bool:
        return self.machine.is_reachable

    def start(self, given: Given, environment: dict[str, str]) -> None:
        """Has it made."""
        root, self.volumes = given
        function = msgspec.structs.replace(self.function, env=environment, secrets=())
        fds: tuple[int, ...] = ()
        pickled = function.source.pickled
        if pickled is not None and len(pickled) > INLINE_LIMIT:
            fds = (to_memory(pickled),)
            function = msgspec.structs.replace(function, source=msgspec.structs.replace(function.source, pickled=b""))
        image = None if root is None else cluster.ImageRoot(*root)
        self._started = True
        self.way.send(
            cluster.StartContainer(
                self.container_id, self.app_id, function, self.params, image, self.volumes, self.gpus, len(fds)
            ),
            fds,
        )

    # --- inputs

    def hand(self, assignments: Sequence[Assignment], now: float, *, batch: bool = False) -> None:
        idle = not self._handed
        super().hand(assignments, now, batch=batch)
        if self._together:
            for assignment in assignments:
                assignment.started_at = now
            self.page.start(self._seq, now)
        elif idle:
            self.page.start(next(iter(self._handed)), now)

    def answered(self, seq: int) -> Assignment | None:
        self._asked_back.discard(seq)
        assignment = super().answered(seq)
        if not self._together and self._handed:
            first = next(iter(self._handed))
            if first != self.page.started:
                self.page.start(first, self.machine.now())
        return assignment

    def take_back(self) -> list[Any]:
        """Asks for what has not started; it comes by and by."""
        if self._together or len(self._handed) < 2:
            return []
        seqs = iter(self._handed)
        next(seqs)
        asked = [seq for seq in seqs if seq not in self._asked_back]
        if asked:
            self._asked_back.update(asked)
            self.way.send(cluster.TakeBack())
        return []

    def _cancel(self, seq: int, reason: int, now: float) -> None:
        if seq in self._cancelled:
            return
        self._cancelled.add(seq)
        self.way.send(messages.CancelInput(seq, reason))
        if seq <= self.page.started:
            self._ending[seq] = now + CANCEL_GRACE  # nothing more is handed to it until it is known what comes of it

    def check_time(self, now: float) -> list[Assignment]:
        """Its machine does that."""
        return []

    # --- ending

    def drain(self, grace: float, reason: str, now: float) -> list[Any]:
        if self.state is not State.READY or not self._handed:
            self.stop(grace, reason, now)
            return []
        self.state = State.STOPPING
        self.reason = reason
        self.way.send(cluster.EndContainer("drain", grace, reason))
        return []

    def stop(self, grace: float, reason: str, now: float) -> None:
        if self.state in (State.STOPPING, State.GONE):
            return
        if not self._started:
            self.kill(reason)
            return
        self.reason = reason
        self.take_no_more()
        self.way.send(cluster.EndContainer("stop", grace, reason))

    def kill(self, reason: str) -> None:
        if self.state is State.GONE:
            return
        self.reason = self.reason or reason
        self.doomed = True
        self.take_no_more()
        if self._started:
            self.way.send(cluster.EndContainer("kill", 0.0, reason))
        else:
            self.machine.loop.call_soon(self.gone, End(None, self.reason, lost=False))

    def gone(self, end: End, started: Collection[int] | None = None) -> None:
        """Nothing of it is left. Of the inputs that it held those in `started` have run; None: nobody knows."""
        if not self.machine.forget(self):
            return
        for command in list(self._execs.values()):
            command.lost()
        tokens = [one.token for one in self._handed.values()]
        others: list[Any] = []
        if started is not None:
            tokens = [one.token for seq in started if (one := self._handed.get(seq)) is not None]
            others = [one.token for seq, one in self._handed.items() if seq not in started]
        self.close()
        LocalEnd.close(self.way)
        self.owner.on_gone(self, end, tokens, others)

    # --- what it tells

    def _take(self, message: Any, fds: tuple[int, ...]) -> None:
        match message:
            case messages.Results(results=results):
                self.owner.on_message(self, message, fds)
                if not results:
                    close_all(fds)
            case _ if self.way.is_given_up and isinstance(message, messages.FromRunner):
                close_all(fds)
            case _ if isinstance(message, messages.FromRunner):
                self.owner.on_message(self, message, fds)
            case _:
                close_all(fds)
                self._told(message)

    def _told(self, message: Any) -> None:
        """What its machine says of it."""
        match message:
            case cluster.TakenBack():
                self._taken_back(message)
            case cluster.TimedOut(seq=seq):
                if (assignment := self._handed.get(seq)) is not None:
                    self.owner.on_timeout(assignment.token)
            case cluster.ContainerMade(timeline=timeline):
                if self.state is State.STARTING:
                    self.add_steps(timeline)
                    self.state = State.LOADING
                    self.owner.on_made(self)
            case cluster.ContainerLoaded():
                self._loaded(message)
            case cluster.ContainerStopping():
                self.take_no_more()
            case cluster.ContainerGone():
                self.gone(_end_of(self.container_id, message.end), frozenset(message.started))
            case cluster.PipeText(stream=stream, text=text, seq=seq):
                self.machine.on_text(self, stream, text, self._handed.get(seq))
            case ExecOutput() | ExecTaken() | cluster.ExecEnded():
                if (command := self._execs.get(message.seq)) is not None:
                    command.take(message)
            case _:
                raise errors.ProtocolError(f"a {type(message).__name__} has no place here")

    def _taken_back(self, message: cluster.TakenBack) -> None:
        tokens: list[Any] = []
        for seq in message.inputs:
            self._asked_back.discard(seq)
            self._cancelled.discard(seq)
            self._ending.pop(seq, None)
            if (assignment := self._let_go(seq)) is not None:
                tokens.append(assignment.token)
        if tokens:
            self.owner.on_taken_back(self, tokens, message.seconds if message.is_blocked else None)

    def _loaded(self, message: cluster.ContainerLoaded) -> None:
        # With an error it is being ended already, which is told first.
        if self.state is not State.LOADING and (message.error is None or self.doomed or self.reported_error):
            return
        now = self.machine.now()
        self.ready_at = self.idle_since = now
        self.start_seconds = now - self.created_at
        self.add_steps(message.timeline)
        self.notes = message.notes
        if message.error is None:
            self.state = State.READY
        else:
            self.take_no_more()
            self.reported_error = True
            self.reason = "its import or enter hook failed"
        self.owner.on_loaded(self, message.error)

    # --- commands in it

    def exec(self, peer: Peer, seq: int) -> ExecRelay:
        """A command that is to run in it, for a client's request of that number. Raises NotFoundError where its machine
        has not been told of it yet."""
        if not self._started:
            raise errors.NotFoundError(f"container {self.container_id} is only being made; try again in a moment")
        number = max(self._execs, default=0) + 1
        command = self._execs[number] = ExecRelay(self, peer, seq, number, lambda: self._execs.pop(number, None))
        return command


def _end_of(container_id: str, end: cluster.ContainerEnd) -> End:
    exited = (
        Exited(
            container_id,
            end.exit_code,
            end.signal,
            end.out_of_memory,
            end.memory_peak,
            end.memory_limit,
            end.killed_by_us,
            end.disk_exceeded,
        )
        if end.has_exited
        else None
    )
    error = errors.from_code(end.error_code, end.error) if end.error_code else None
    return End(exited, end.reason, end.lost, error, end.severed, end.refused)
