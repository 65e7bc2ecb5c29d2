"""A command that runs in a container: its input, its output as it comes, its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from farcall import errors
from farcall.sdk.client import checked
from farcall.wire import messages
from farcall.wire.connection import Waiter
from farcall.wire.execs import (
    EXEC_WINDOW,
    ExecCommand,
    ExecEnd,
    ExecInput,
    ExecOutput,
    ExecResize,
    ExecSignal,
    ExecTaken,
)

if TYPE_CHECKING:
    from farcall.sdk.client import Client

_PIECE = 64 * 1024  # bytes of input in one message


class Exec:
    """One command. `wait` in one thread; `write`, `resize` and `signal` from any."""

    def __init__(
        self,
        client: Client,
        container_id: str,
        command: Sequence[str],
        on_output: Callable[[Literal["stdout", "stderr"], bytes], None],
        *,
        environment: Mapping[str, str] | None = None,
        workdir: str = "",
        terminal: tuple[int, int] | None = None,
    ) -> None:
        """Starts it, on a terminal of (rows, columns) or without one.

        `on_output` is called by the thread that waits, or by another one that reads the connection; while it does not
        return, the command is held back.
        """
        self._client = client
        self._on_output = on_output
        self._waiter = Waiter()
        self._answer: Any = None
        self._window = EXEC_WINDOW
        self._changed = threading.Condition()
        self._seq = client.begin(
            lambda seq: ExecCommand(seq, container_id, [*command], {**(environment or {})}, workdir, terminal), (), self
        )

    def wait(self) -> ExecEnd:
        """Waits for its end. Raises what it was refused for, and ConnectionLostError."""
        try:
            self._client.connection.wait(self._waiter)
        finally:
            self._client.end(self._seq)
        return msgspec.msgpack.decode(checked(self._answer).body, type=ExecEnd)

    def write(self, data: bytes) -> None:
        """Gives it input; waits while it does not take what it has. What comes after its end goes nowhere."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            with self._changed:
                while self._window < len(piece) and self._answer is None:
                    self._changed.wait()
                self._window -= len(piece)
            self._send(ExecInput(self._seq, piece))

    def close_input(self) -> None:
        """It gets no more input."""
        self._send(ExecInput(self._seq, b"", True))

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size."""
        self._send(ExecResize(self._seq, rows, columns))

    def signal(self, number: int) -> None:
        """Signals it, and all in its process group."""
        self._send(ExecSignal(self._seq, number))

    def _send(self, message: Any) -> None:
        try:
            if self._answer is None:
                self._client.connection.send(message)
        except errors.ConnectionLostError:
            pass  # whoever waits for its end is told

    # --- as a receiver of messages

    def receive(self, message: Any, fds: tuple[int, ...]) -> None:
        match message:
            case ExecOutput(stream=stream, data=data):
                self._on_output(stream, data)
            case ExecTaken(size=size):
                with self._changed:
                    self._window += size
                    self._changed.notify()
            case messages.Done() | messages.Failed():
                self._end(message)
            case _:
                pass

    def lose(self, error: errors.ConnectionLostError) -> None:
        self._end(error)

    def _end(self, answer: Any) -> None:
        with self._changed:
            self._answer = answer
            self._changed.notify()
        self._waiter.set()
