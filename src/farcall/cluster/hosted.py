"""A container that this machine runs for a server elsewhere: between the worker that has it and its channel."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from farcall import errors
from farcall.cluster.ends import LocalEnd
from farcall.wire import cluster, messages
from farcall.wire.descriptors import close_all
from farcall.wire.execs import ExecCommand, ExecInput, ExecResize, ExecSignal
from farcall.wire.memory import from_memory
from farcall.wire.transport import UNREAD_BYTES
from farcall.worker.container import Assignment, Container, End, State
from farcall.worker.exec_streams import ExecStreams

if TYPE_CHECKING:
    from farcall.cluster.agent import Agent

STUCK_SECONDS = 0.05  # that an input may wait to be started beside others, before it is taken back
_encode = msgspec.msgpack.Encoder().encode


class Hosted:
    """The owner of one container. Inputs have the numbers here that the server gave them, as both ends count them in
    the order in which they are handed out."""

    def __init__(self, agent: Agent, end: LocalEnd, asked: cluster.StartContainer, fds: tuple[int, ...]) -> None:
        self.container_id = asked.container_id
        self.container: Container | None = None
        self._agent = agent
        self._end = end
        self._asked = asked
        self._doomed: cluster.EndContainer | None = None
        self._batch: list[Assignment] = []
        self._execs: dict[int, ExecStreams] = {}
        self._concurrent = asked.function.concurrency.max_inputs > 1
        self._is_paused = False
        self._settled = asyncio.Event()  # its trees are kept for it, or it is gone
        end.on_message = self._take
        end.on_close = self._given_up
        end.on_pause = self._pause
        end.on_resume = self._resume
        function = asked.function
        if fds:
            try:
                source = msgspec.structs.replace(function.source, pickled=from_memory(fds[0]))
                function = msgspec.structs.replace(function, source=source)
            finally:
                close_all(fds)
        self._function = function
        self._starting = asyncio.ensure_future(self._start())

    async def _start(self) -> None:
        asked = self._asked
        try:
            with self._agent.store.lease("start") as lease:
                function, given = await self._agent.given(lease, self._function, asked)
                if self._doomed is not None:
                    raise errors.ContainerStartError(self._doomed.reason)
                self.container = self._agent.worker.start(
                    asked.container_id, asked.app_id, function, asked.params, self, asked.gpus, given
                )
                self.container.on_mounted = self._settled.set
                await self._settled.wait()  # by then the container has a lease of its own
        except errors.FarcallError as error:
            self._could_not(error, refused=isinstance(error, Refused))
        except Exception as error:
            logging.getLogger("farcall.cluster").exception("container %s was not started", self.container_id)
            self._could_not(
                errors.InternalError(f"{error!r}, on worker {self._agent.name}; see its log"), refused=False
            )
        if self._doomed is not None and self.container is not None:
            self._end_it(self._doomed)

    def _could_not(self, error: errors.FarcallError, *, refused: bool) -> None:
        reason = "" if self._doomed is None else self._doomed.reason
        told = self._on_here(error)
        end = cluster.ContainerEnd(reason=reason, error_code=error.code, error=told, refused=refused)
        self._end.send(cluster.ContainerGone(end, []))
        self._close()

    def _on_here(self, error: errors.FarcallError) -> str:
        """What went wrong, with this machine's name where that is what matters."""
        here = f"worker {self._agent.name}"
        if not isinstance(error, errors.ResourceExhaustedError) or here in str(error):
            return str(error)
        return f"{here}: {error}"

    def _close(self) -> None:
        self._agent.forget(self)
        self._end.close()

    def kill(self, reason: str) -> None:
        """Ends it at once: nobody is there any more who wants it."""
        self._end_it(cluster.EndContainer("kill", 0.0, reason))

    # --- from the server

    def _take(self, message: Any, fds: tuple[int, ...]) -> None:
        container = self.container
        match message:
            case messages.Run():
                self._hand(message, fds)
                return
            case (
                messages.Done()
                | messages.Failed()
                | messages.Outputs()
                | messages.Items()
                | messages.Pending()
                | messages.CallWaiting()
                | messages.RunnerCredit()
            ):
                if container is not None and container.transport is not None:
                    container.transport.send(message, fds)
                    if container.transport.buffered > UNREAD_BYTES:
                        self.kill(f"it asks and does not read: {UNREAD_BYTES // 2**20} MiB wait for it")
                else:
                    close_all(fds)
                return
            case _:
                close_all(fds)
        match message:
            case messages.CancelInput(seq=seq, reason=reason):
                if container is not None and (assignment := container.assignment(seq)) is not None:
                    container.cancel(assignment.token, reason, self._agent.now())
            case cluster.TakeBack():
                if container is not None and container.state is State.READY:
                    self._taken_back(container.take_back())
            case cluster.EndContainer():
                self._end_it(message)
            case ExecCommand():
                self._exec(message)
            case cluster.HoldExec(command=number, held=held):
                if (command := self._execs.get(number)) is not None:
                    command.is_held = held
            case ExecInput() | ExecResize() | ExecSignal():
                if (command := self._execs.get(message.command)) is not None:
                    command.handle(message)
            case _:
                logging.getLogger("farcall.cluster").error("a %s has no place here", type(message).__name__)

    def _hand(self, message: messages.Run, fds: tuple[int, ...]) -> None:
        container = self.container
        assert container is not None, "inputs come to a container that has loaded"
        position = 0
        assignments: list[Assignment] = []
        for one in message.inputs:
            mine = fds[position : position + one.descriptors]
            position += one.descriptors
            assignments.append(
                Assignment(one.seq, message.call_id, message.method, one.index, one.data, mine, message.credit)
            )
        if not message.batch:
            container.hand(assignments, self._agent.now())
            self._agent.lingering.call(is_lone=container.holds == 1)
            close_all(fds)
            return
        self._batch += assignments
        if assignments[-1].token == message.batch:
            batch, self._batch = self._batch, []
            container.hand(batch, self._agent.now(), batch=True)
            for one in batch:
                close_all(one.fds)

    def _end_it(self, order: cluster.EndContainer) -> None:
        container = self.container
        if container is None:
            self._doomed = order
            return
        now = self._agent.now()
        match order.how:
            case "drain":
                self._taken_back(container.drain(order.grace, order.reason, now))
            case "stop":
                container.stop(order.grace, order.reason, now)
            case "kill":
                container.kill(order.reason)

    def _given_up(self) -> None:
        """The channel has ended: also while it is only being made, or it would run here for nobody."""
        if self.container is None or self.container.state is not State.GONE:
            self.kill("its server is gone")

    def _exec(self, message: ExecCommand) -> None:
        command = self._execs[message.seq] = ExecStreams(self._agent.worker, self._end, message.seq)

        async def run() -> None:
            try:
                ended = cluster.ExecEnded(message.seq, _encode(await command.run(message)))
            except Exception as error:  # or who asked would wait for as long as the container runs
                if not isinstance(error, errors.FarcallError):
                    logging.getLogger("farcall.cluster").exception("a command was not run in %s", self.container_id)
                    error = errors.InternalError(f"{error!r}, on worker {self._agent.name}; see its log")
                ended = cluster.ExecEnded(message.seq, b"", messages.Failure(error.code, str(error)))
            finally:
                self._execs.pop(message.seq, None)
            self._end.send(ended)

        self._agent.spawn(run())

    # --- from the container

    def on_made(self, container: Container) -> None:
        self._end.send(cluster.ContainerMade(container.timeline))

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        self._end.send(
            cluster.ContainerLoaded(container.timeline, list(container.notes), container.start_seconds, error)
        )

    def on_message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, messages.Results):
            for result in message.results:
                container.answered(result.seq)
            self._agent.lingering.answer(is_lone=not container.holds)
        self._end.send(message, fds)

    def on_stopping(self, container: Container) -> None:
        self._end.send(cluster.ContainerStopping())

    def on_timeout(self, token: Any) -> None:
        self._end.send(cluster.TimedOut(token))

    def on_taken_back(self, container: Container, tokens: list[Any], blocked_seconds: float | None) -> None:
        """Never: the container is this machine's own."""

    def on_gone(self, container: Container, end: End, started: list[Any], unstarted: list[Any]) -> None:
        if isinstance(end.error, errors.ResourceExhaustedError):
            end = replace(end, error=errors.ResourceExhaustedError(self._on_here(end.error)))
            self._agent.make_room()
        self._settled.set()
        self._end.send(cluster.ContainerGone(_told(end), started))
        self._close()

    def on_text(self, container: Container, stream: str, text: str) -> None:
        """Something that it wrote past Python."""
        running = container.running()
        of = "stdout" if stream == "stdout" else "stderr"
        self._end.send(cluster.PipeText(of, text, 0 if running is None else running.token))

    def tick(self, now: float) -> None:
        """Takes back what a container whose loop is blocked does not start."""
        container = self.container
        if not self._concurrent or container is None or container.state is not State.READY or not container.holds:
            return
        seconds = container.unstarted_seconds(now)
        if seconds >= STUCK_SECONDS:
            self._taken_back(container.take_back(), seconds)

    def _taken_back(self, tokens: list[Any], blocked_seconds: float | None = None) -> None:
        if tokens:
            self._end.send(cluster.TakenBack(tokens, blocked_seconds is not None, blocked_seconds or 0.0))

    # --- how much is on its way

    def _pause(self) -> None:
        if not self._is_paused and self.container is not None and self.container.transport is not None:
            self._is_paused = True
            self.container.transport.pause()

    def _resume(self) -> None:
        if self._is_paused and self.container is not None and self.container.transport is not None:
            self._is_paused = False
            self.container.transport.resume()


class Refused(errors.ContainerStartError):
    """This machine will not have the container; another one may."""


def _told(end: End) -> cluster.ContainerEnd:
    exited = end.exited
    error = end.error
    return cluster.ContainerEnd(
        exit_code=None if exited is None else exited.exit_code,
        signal=None if exited is None else exited.signal,
        out_of_memory=exited is not None and exited.out_of_memory,
        memory_peak=0 if exited is None else exited.memory_peak,
        memory_limit=0 if exited is None else exited.memory_limit,
        killed_by_us=exited is not None and exited.killed_by_us,
        disk_exceeded=exited is not None and exited.disk_exceeded,
        has_exited=exited is not None,
        reason=end.reason,
        lost=end.lost,
        severed=end.severed,
        error_code="" if error is None else error.code,
        error="" if error is None else str(error),
    )
