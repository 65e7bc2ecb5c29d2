"""Ctrl-C, a closed terminal and `kill`: all end a run in the same orderly way, and a second one at once."""

import _thread
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from types import FrameType

KILL_SECONDS = 5.0  # after a second interrupt the process ends within this time, whatever it waits for
NUDGE_SECONDS = 0.02  # the main thread has this long to look for the signal that has come, until it is disturbed


class Killed(BaseException):
    """A second interrupt: what is being stopped shall be killed."""


# Windows has no terminals that hang up.
_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_OURS = (signal.SIGTERM,) if _HANG_UP is None else (signal.SIGTERM, _HANG_UP)
_NUDGE: signal.Signals | None = getattr(signal, "SIGURG", None)  # ignored by programs that do not ask for it


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
        with nullcontext() if _NUDGE is None else _Nudger(_NUDGE):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Nudger:
    """Sees to it that the main thread notices what it is signalled.

    Python runs handlers in the main thread, between two steps of its program. A signal that comes after the last look
    for one and before the system call in which the program then sleeps would be noticed only when that sleep is over;
    likewise one that the kernel has given to another thread. The second Ctrl-C may help, but a terminal closes once.
    So a thread hears of each signal (by the wakeup descriptor), and disturbs the main thread until that has looked.
    """

    def __init__(self, number: signal.Signals) -> None:
        """`number` is what disturbs: a signal that ends nothing. To be made, entered and left by the main thread."""
        self._number = number
        self._main = threading.get_ident()
        self._looked = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="farcall-signals", daemon=True)

    def __enter__(self) -> None:
        self._handler = signal.signal(self._number, self._look)
        self._descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._descriptor)
        self._writer.close()
        self._thread.join()
        self._reader.close()
        signal.signal(self._number, self._handler)

    def _look(self, number: int, frame: FrameType | None) -> None:
        self._looked = True  # handlers of lower numbers, all those that matter, have run before

    def _run(self) -> None:
        awaited = {int(number) for number in (signal.SIGINT, *_OURS)}
        while numbers := self._reader.recv(64):
            if awaited.isdisjoint(numbers):
                continue
            self._looked = False
            while not self._looked:
                time.sleep(NUDGE_SECONDS)
                signal.pthread_kill(self._main, self._number)


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
