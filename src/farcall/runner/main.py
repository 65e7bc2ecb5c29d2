"""The runner's life: say hello, load, run inputs until told to stop, run exit hooks, exit.

    0 /dev/null   1, 2 pipes to the worker   3 control socket   4 shared page   5 lifeline to the launcher

One thread does everything: it reads the connection, and runs the user's code, so that a call crosses no threads. What
is imported here is what a plain function needs; a template forks with it loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys

from farcall import _private
from farcall.runner.process import Runner

_RUNNER_PATH = "FARCALL_RUNNER_PATH"
_CONTAINER_ID = "FARCALL_CONTAINER_ID"


def main() -> None:
    """Runs this process as the runner of a container. Does not return."""
    hide(os.environ.get(_RUNNER_PATH, ""))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write("farcall-runner")
    runner = Runner(os.environ.get(_CONTAINER_ID, ""))
    try:
        status = runner.run()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType] - never empty in a handler
        status = 70
    runner.finish(status)


def hide(runner_path: str) -> None:
    """Takes farcall's private directory off `sys.path`: user code must find its own packages, or none."""
    if runner_path:
        while runner_path in sys.path:
            sys.path.remove(runner_path)
        if not _private.active():  # an installation: processes that user code starts look for farcall there
            sys.path.append(runner_path)
    _private.install()
