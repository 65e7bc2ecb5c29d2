"""Children that user code forks: they have nothing to do with the runner's connection, output and signals."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farcall.runner.process import Runner

_runner: Runner | None = None
_OWN_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_mask: set[int] = set()  # of blocked signals, before the fork


def register(runner: Runner) -> None:
    """From now on forks of this process are followed."""
    global _runner
    if _runner is None:
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    _runner = runner


def _before() -> None:
    if _runner is not None:
        _runner.output.flush()
        _runner.outbox.before_fork()
        # One that came to the child before its handlers are reset would be lost.
        _mask.clear()
        _mask.update(signal.pthread_sigmask(signal.SIG_BLOCK, _OWN_SIGNALS))


def _after_in_parent() -> None:
    if _runner is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
        _runner.outbox.after_fork_in_parent()


def _after_in_child() -> None:
    global _runner
    runner, _runner = _runner, None
    if runner is None:
        return
    runner.executor.in_child = True
    runner.outbox.after_fork_in_child()
    runner.output.use_descriptors()
    runner.release_descriptors()
    for number in _OWN_SIGNALS:
        # Those that user code has set stay, as in any child.
        if runner.owns(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
