"""A command in a container, between its pipes or terminal and whoever asked for it: input, output, signals, end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from farcall import errors
from farcall.wire.execs import EXEC_WINDOW, ExecEnd, ExecInput, ExecOutput, ExecResize, ExecSignal, ExecTaken

if TYPE_CHECKING:
    from farcall.wire.execs import ExecCommand
    from farcall.worker.execs import ExecProcess
    from farcall.worker.worker import Worker

READ_SIZE = 32 * 1024  # bytes
UNSENT_LIMIT = 1024 * 1024  # bytes that a client may be behind before the command is read no further
BEHIND_PAUSE = 0.01  # seconds between looks at whether it has caught up
DRAIN_SECONDS = 1.0  # for what a command leaves in its pipes, which its children may hold open for ever


class Peer(Protocol):
    """Who asked for a command."""

    @property
    def buffered(self) -> int:
        """Bytes sent that it has not taken."""
        ...

    def send(self, message: Any, fds: Sequence[int] = ()) -> None: ...


class ExecStreams:
    """One command."""

    def __init__(self, worker: Worker, peer: Peer, seq: int) -> None:
        self._worker = worker
        self._peer = peer
        self._seq = seq
        self._process: ExecProcess | None = None
        self._input = bytearray()
        self._input_ends = False
        self._more_input = asyncio.Event()
        self._resize: tuple[int, int] | None = None
        self._signals: list[int] = []
        self._stdin_open = True
        self.is_held = False  # who reads its output is behind: it is read no further

    def add_input(self, data: bytes, end: bool) -> None:
        """More to be written to it. Raises ProtocolError where it is more than may be on its way."""
        if len(self._input) + len(data) > EXEC_WINDOW:
            raise errors.ProtocolError(f"more than {EXEC_WINDOW:,} bytes of input at once")
        self._input += data
        self._input_ends = self._input_ends or end
        self._more_input.set()

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size; without a terminal that means nothing."""
        if self._process is None:
            self._resize = rows, columns
        elif self._process.stdin == self._process.stdout:
            fcntl.ioctl(self._process.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        """Signals it, now or as soon as it has started."""
        if self._process is None:
            self._signals.append(number)
        elif not self._process.end.done():
            self._worker.signal_exec(self._process, number)

    def handle(self, message: ExecInput | ExecResize | ExecSignal) -> None:
        """What is sent to it. Raises InvalidError and ProtocolError."""
        match message:
            case ExecInput(data=data, end=end):
                self.add_input(data, end)
            case ExecResize(rows=rows, columns=columns):
                self.resize(rows, columns)
            case ExecSignal(signal=number):
                if number not in signal.valid_signals():
                    raise errors.InvalidError(f"there is no signal {number}")
                self.signal(number)

    async def run(self, message: ExecCommand) -> ExecEnd:
        """Runs it to its end. Raises InvalidError, NotFoundError and ConflictError."""
        return await self._carry(
            await self._worker.start_exec(
                message.container_id, message.command, message.environment, message.workdir, message.terminal
            )
        )

    async def _carry(self, process: ExecProcess) -> ExecEnd:
        """Passes on its input and output until it has ended."""
        self._process = process
        for fd in {process.stdin, process.stdout, process.stderr}:
            os.set_blocking(fd, False)
        on_terminal = process.stdin == process.stdout
        if self._resize is not None:
            self.resize(*self._resize)
        for number in self._signals:
            self.signal(number)
        feeding = asyncio.ensure_future(self._feed(process.stdin, closes=not on_terminal))
        reading = [asyncio.ensure_future(self._read(process.stdout, "stdout"))]
        if not on_terminal:
            reading.append(asyncio.ensure_future(self._read(process.stderr, "stderr")))
        try:
            ended = await process.end
            while (await asyncio.wait(reading, timeout=DRAIN_SECONDS))[1] and self._is_behind():
                pass  # the rest is read when the client has taken what came before
            return ExecEnd(ended.exit_code, ended.signal)
        finally:
            for task in (feeding, *reading):
                task.cancel()
            await asyncio.gather(feeding, *reading, return_exceptions=True)
            for fd in {process.stdout, process.stderr, *([process.stdin] if self._stdin_open else [])}:
                os.close(fd)
            self._worker.forget_exec(process)
            self._process = None

    async def _feed(self, fd: int, *, closes: bool) -> None:
        """Writes its input as it comes, and closes it after the end."""
        loop = asyncio.get_running_loop()
        while True:
            await self._more_input.wait()
            self._more_input.clear()
            while self._input:
                try:
                    taken = os.write(fd, self._input)
                except BlockingIOError:
                    await _ready(loop.add_writer, loop.remove_writer, fd)
                    continue
                except OSError:  # nobody reads it any more
                    taken = len(self._input)
                del self._input[:taken]
                self._peer.send(ExecTaken(self._seq, taken))
            if self._input_ends:
                if closes:
                    self._stdin_open = False
                    os.close(fd)
                return

    def _is_behind(self) -> bool:
        return self.is_held or self._peer.buffered > UNSENT_LIMIT

    async def _read(self, fd: int, stream: Literal["stdout", "stderr"]) -> None:
        """Sends on what it writes, until its end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = os.read(fd, READ_SIZE)
            except BlockingIOError:
                await _ready(loop.add_reader, loop.remove_reader, fd)
                continue
            except OSError:  # a terminal that nobody has open any more
                return
            if not data:
                return
            self._peer.send(ExecOutput(self._seq, stream, data))
            while self._is_behind():  # noqa: ASYNC110 - a connection does not say when it has room
                await asyncio.sleep(BEHIND_PAUSE)


async def _ready(add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], object], fd: int) -> None:
    """Returns when the descriptor can be read, or written."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
