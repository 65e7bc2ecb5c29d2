"""`python -m bench.delay SECONDS COMMAND...`: a command at the other end of a long line.

What comes in on standard input reaches the command SECONDS later, and so does what it says on its way back. The line is
as fast as a pipe and holds as much as is under way.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_PIECE = 1 << 16

Late = tuple[float, bytes]  # when a piece is due, by the monotonic clock, and the piece


def give(under_way: queue.Queue[Late] | queue.SimpleQueue[Late], write: Callable[[bytes], object]) -> None:
    """Writes each piece when it is due, until an empty one, or until nobody takes them."""
    with suppress(OSError):
        while True:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                return
            write(data)


def line(source: int, target: int, seconds: float) -> threading.Thread:
    """Carries bytes from one descriptor to another, later; the thread ends when either does, and closes `target`."""
    under_way: queue.SimpleQueue[Late] = queue.SimpleQueue()

    def take() -> None:
        data = b"more"
        while data:
            try:
                data = os.read(source, _PIECE)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + seconds, data))

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]

    def give_all() -> None:
        give(under_way, write)
        os.close(target)

    threading.Thread(target=take, daemon=True).start()
    giving = threading.Thread(target=give_all, daemon=True)
    giving.start()
    return giving


def main() -> int:
    seconds = float(sys.argv[1])
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert command.stdin is not None
    assert command.stdout is not None
    line(0, os.dup(command.stdin.fileno()), seconds)
    command.stdin.close()
    line(os.dup(command.stdout.fileno()), 1, seconds).join()
    return command.wait()


if __name__ == "__main__":
    sys.exit(main())
