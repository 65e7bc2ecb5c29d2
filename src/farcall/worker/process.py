"""A process that serves until it is told to end: its event loop, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any

LEAVE_SECONDS = 15.0  # for threads that are still at something when all else has ended


def run(serving: Coroutine[Any, Any, None]) -> None:
    """Runs `serving` to its end, on uvloop where that is installed. The process ends soon after this returns: a thread
    that still waits then, for an object store that hangs or for a disk that is gone, is not waited for any longer than
    `LEAVE_SECONDS`. What is to outlast the process has to be recorded when `serving` returns."""

    async def serve() -> None:
        await serving
        threading.Thread(target=_leave, name="leave", daemon=True).start()

    with _runner() as runner:
        runner.run(serve())


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _leave() -> None:
    threading.Event().wait(LEAVE_SECONDS)
    waiting = [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    logging.getLogger("farcall").warning(
        "the process ends without waiting for what its threads are at: %s", ", ".join(waiting)
    )
    sys.stdout.flush()
    os._exit(0)
