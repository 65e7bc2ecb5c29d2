"""One download, however many threads and processes want it: the first claims it, the others wait and find it done."""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from farcall.content.attempts import StoppedError
from farcall.errors import TimeoutError

LONGEST_WAIT = 300.0  # seconds for what another thread or process is fetching; it gives up itself long before that
_FIRST_POLL, _LAST_POLL = 0.002, 0.1  # seconds between two looks whether it is done
_FLOCK = "hhqqi4x"  # struct flock


@contextmanager
def claim(path: Path, stop: threading.Event) -> Generator[None]:
    """While this is held, nobody else holds a claim on `path`, a file that exists for as long as there are claims.

    Raises `TimeoutError` when another holds it for too long, `StoppedError` when `stop` is set, OSError.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with claim_range(fd, 0, 1, stop, str(path)):
                if os.fstat(fd).st_nlink == 0:
                    continue  # the one before was the last, it seemed: the file of that name is another one now
                try:
                    yield
                finally:
                    os.unlink(path)
                return
        finally:
            os.close(fd)


@contextmanager
def claim_range(fd: int, start: int, length: int, stop: threading.Event, title: str) -> Generator[None]:
    """While this is held, nobody else holds a claim on these bytes of the file, through another opening of it.

    Raises as `claim` does.
    """
    # Locks of the opening of a file, not of the process: threads are kept apart by them, too.
    waited, pause = time.monotonic(), _FIRST_POLL
    while not _try_lock(fd, fcntl.F_WRLCK, start, length):
        if time.monotonic() - waited > LONGEST_WAIT:
            raise TimeoutError(
                f"another process has been fetching {title} for {LONGEST_WAIT:.0f} s. Try again; if it goes on, look "
                "for one that has stopped"
            )
        if stop.wait(pause):
            raise StoppedError
        pause = min(_LAST_POLL, pause * 1.5)
    try:
        yield
    finally:
        _try_lock(fd, fcntl.F_UNLCK, start, length)


def _try_lock(fd: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
