"""Commands that clients run in containers: their input, output and end, over the client's connection."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from farcall import errors
from farcall.wire.execs import ExecCommand, ExecEnd, ExecInput, ExecResize, ExecSignal

if TYPE_CHECKING:
    from farcall.server.server import Server
    from farcall.server.session import Session


class Running(Protocol):
    """A command that runs, here or on another machine."""

    def handle(self, message: ExecInput | ExecResize | ExecSignal) -> None:
        """What a client sends to it."""
        ...

    def signal(self, number: int) -> None: ...

    async def run(self, message: ExecCommand) -> ExecEnd: ...


class Execs:
    """The commands that run."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._running: dict[tuple[Session, int], Running] = {}

    def run(self, session: Session, message: ExecCommand) -> Coroutine[Any, Any, bytes]:
        """Runs a command to its end; gives the body of the answer. From now on `handle` knows it. Raises InvalidError,
        NotFoundError and ConflictError."""
        if not message.command:
            raise errors.InvalidError("there is no command to run")
        command = self._running[session, message.seq] = self._server.workers.exec(
            message.container_id, session, message.seq
        )
        return self._run((session, message.seq), command, message)

    async def _run(self, key: tuple[Session, int], command: Running, message: ExecCommand) -> bytes:
        try:
            end = await command.run(message)
        finally:
            del self._running[key]
        return msgspec.msgpack.encode(end)

    def handle(self, session: Session, message: ExecInput | ExecResize | ExecSignal) -> None:
        """What a client sends to a command; one that has ended is no error."""
        command = self._running.get((session, message.command))
        if command is not None:
            command.handle(message)

    def forget(self, session: Session) -> None:
        """The session is over, and its commands with it."""
        for (other, _), command in self._running.items():
            if other is session:
                command.signal(signal.SIGKILL)
