"""`farcall container exec`: this terminal, or these streams, lent to a command in a container."""

import os
import select
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from farcall.cli.usage import UsageError

if TYPE_CHECKING:
    from farcall.sdk.client import Client
    from farcall.sdk.execs import Exec

_READ_SIZE = 16 * 1024  # bytes
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def execute(
    client: "Client",
    container_id: str,
    command: Sequence[str],
    *,
    terminal: bool | None,
    environment: Mapping[str, str],
    workdir: str,
) -> int:
    """Runs a command in a container until its end; returns its exit code, 128 and more for a signal, as a shell does.

    With a `terminal` (None: where stdin and stdout are one) it has one of its own, and this one only passes on keys and
    size. Without, its streams are these, and the signals that would end this process go to it.
    """
    from farcall.sdk.execs import Exec

    on_terminal = os.isatty(0) and os.isatty(1)
    if terminal is None:
        terminal = on_terminal
    elif terminal and not os.isatty(0):
        raise UsageError("--pty needs a terminal as standard input")
    if terminal:
        environment = {"TERM": os.environ.get("TERM", "xterm"), **environment}
    with ExitStack() as stack:
        wakes = stack.enter_context(_woken_by_signals())
        if terminal:
            stack.enter_context(_raw(0))
        size = _size() if terminal else None
        started = Exec(
            client,
            container_id,
            command,
            _write,
            environment=environment,
            workdir=workdir,
            terminal=size,
        )
        over, end_feeding = os.pipe()
        feeder = threading.Thread(target=_feed, args=(started, wakes, over, size), daemon=True)
        feeder.start()
        try:
            end = started.wait()
        finally:
            os.close(end_feeding)
            feeder.join(1.0)
            os.close(over)
    return 128 + end.signal if end.exit_code is None and end.signal is not None else end.exit_code or 0


def _feed(command: "Exec", wakes: int, over: int, size: tuple[int, int] | None) -> None:
    """Passes on input, signals, and changes of the terminal's size where it is one, until the other end of `over` is
    closed."""
    sources = [wakes, over, 0]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if over in ready:
            return
        if wakes in ready:
            for number in os.read(wakes, 100):
                if number != signal.SIGWINCH:
                    command.signal(number)
        data = _typed() if 0 in ready else None
        # What was typed after a change comes after it, though the signal of that may be late.
        size = _pass_on_size(command, size)
        if data:
            command.write(data)
        elif data is not None:
            command.close_input()
            sources.remove(0)


def _typed() -> bytes:
    try:
        return os.read(0, _READ_SIZE)
    except OSError:  # the terminal has gone
        return b""


def _pass_on_size(command: "Exec", size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The terminal's size now, of which the command is told where it is another one."""
    if size is None:
        return None
    try:
        now = _size()
    except OSError:  # the terminal has gone
        return size
    if now != size:
        command.resize(*now)
    return now


def _write(stream: Literal["stdout", "stderr"], data: bytes) -> None:
    out = sys.stderr if stream == "stderr" else sys.stdout
    out.buffer.write(data)
    out.buffer.flush()


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(0)
    return size.lines, size.columns


@contextmanager
def _raw(fd: int) -> Generator[None]:
    """The terminal passes on every key as it is, for as long as this is held."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _woken_by_signals() -> Generator[int]:
    """While this is held, signals do nothing but put their number into the pipe that it gives."""

    def noted(number: int, frame: FrameType | None) -> None:
        pass

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before: dict[int, Any] = {}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        for number in (*_PASSED_ON, signal.SIGWINCH):
            before[number] = signal.signal(number, noted)
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reading)
        os.close(writing)
