"""The lock on a state directory: one server at a time."""

import contextlib
import fcntl
import os
from pathlib import Path

from farcall.errors import ConflictError


class StateLock:
    """Holds the directory until `release`, or until the process ends in whatever way (flock).

    Raises ConflictError that names the holder's pid when another server has it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise ConflictError(
                f"another farcall server (pid {holder}) is using the state directory {directory}. "
                f"Stop it with `farcall server stop`, or give this one another state directory."
            ) from None
        except BaseException:
            os.close(self._file)
            raise
        # The lock is what counts; on a full disk the pid may be missing from a message.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, f"{os.getpid():<15}\n".encode(), 0)

    def release(self) -> None:
        """Let the next server in. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
