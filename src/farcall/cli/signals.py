"""Ctrl-C, a closed terminal and `kill`: all end a run in the same orderly way, and a second one at once."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

KILL_SECONDS = 5.0  # after a second interrupt the process ends within this time, whatever it waits for


class Killed(BaseException):
    """A second interrupt: what is being stopped shall be killed."""


# Windows has no terminals that hang up.
_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_OURS = (signal.SIGTERM,) if _HANG_UP is None else (signal.SIGTERM, _HANG_UP)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == _HANG_UP:
        # The terminal has gone; writing to it would fail and hide what we do next.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in _terminals:
            os.dup2(nowhere, fd)
        os.close(nowhere)
    for each in _OURS:  # `timeout` signals twice; a program that lives on after Ctrl-C may want more than one of those
        _handle(each, _kill)
    raise KeyboardInterrupt


_terminals: list[int] = []  # descriptors; a terminal that has hung up no longer says that it is one


def _kill(number: int, frame: FrameType | None) -> None:
    _all(_leave)
    _thread.start_new_thread(_leave_later, ())
    raise Killed


def _leave_later() -> None:
    # What the first interrupt has left half done may keep the main thread waiting for good.
    time.sleep(KILL_SECONDS)
    os._exit(130)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)


@contextmanager
def interruptible() -> Generator[None]:
    """For the time of the block, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT does."""
    _terminals[:] = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_OURS)}
    for number in _OURS:
        _handle(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def next_one_kills() -> None:
    """From now on an interrupt raises `Killed`."""
    _all(_kill)


def next_one_leaves() -> None:
    """From now on an interrupt ends this process where it stands."""
    _all(_leave)


def interrupt_main() -> None:
    """From any thread: a KeyboardInterrupt in the main thread, which ends what it waits for."""
    main = threading.main_thread().ident
    if main is None or not hasattr(signal, "pthread_kill"):
        _thread.interrupt_main()
        return
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a shell does so to what it runs with `&`
    signal.pthread_kill(main, signal.SIGTERM if ignored else signal.SIGINT)


def _all(handler: "signal._HANDLER") -> None:  # pyright: ignore[reportPrivateUsage]
    for number in (signal.SIGINT, *_OURS):
        _handle(number, handler)


def _handle(number: signal.Signals, handler: "signal._HANDLER") -> None:  # pyright: ignore[reportPrivateUsage]
    # What our parent ignores for us stays ignored: `nohup farcall run` survives its terminal.
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)
