"""What is different in Jupyter: cells run inside the kernel's event loop, and people look at the cell they run."""

from __future__ import annotations

import sys
from typing import Any


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    get_ipython: Any = getattr(sys.modules["builtins"], "get_ipython", None)
    return get_ipython is not None and hasattr(get_ipython(), "kernel")


def wake_loop_on_signals() -> None:
    """Makes the running loop look up when a signal comes, so that an interrupt ends a cell that awaits at once.

    The kernel's handler of SIGINT only notes what the loop is to do next; a loop that sleeps until something arrives
    would not notice. asyncio has its loop woken by all signals as soon as it handles one; SIGURG is one that means
    nothing unless it is asked for.
    """
    import asyncio
    import signal

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if signal.getsignal(signal.SIGURG) is not signal.SIG_DFL:
        return  # this has been done, or the user has a use for it
    try:
        loop.add_signal_handler(signal.SIGURG, _nothing)
    except (NotImplementedError, RuntimeError, ValueError):
        pass  # a loop without signals, or one outside the main thread: interrupts do not reach it anyway


def _nothing() -> None:
    pass
