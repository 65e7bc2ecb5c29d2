"""What is said when objects cannot be fetched: one line when it begins, one when it is over."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from farcall.errors import CorruptedError, FarcallError, NotFoundError, ResourceExhaustedError
from farcall.mounts.lazy.index import Wanted

_OTHER_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # than of room on the disk
_MOST = 100  # objects that are named one by one


def errno_for(error: FarcallError | OSError) -> int:
    """What who opens or reads an object gets for this failure of ours. That no descriptor is left is true of this
    process and not of theirs: for them it is an input/output error, and the log says what it was."""
    if isinstance(error, FarcallError):
        cause = error.__cause__
        lacking = cause.errno if isinstance(cause, OSError) else None
        if lacking not in _OTHER_LACKS:
            return errno.ENOSPC if isinstance(error, ResourceExhaustedError) else errno.EIO
    else:
        lacking = error.errno
    return errno.EIO if lacking in (None, errno.EMFILE) else lacking


class Outages:
    """What has failed. Belongs to one thread."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._since: float | None = None
        self._failed = 0
        self._named: set[bytes] = set()  # objects that are nowhere, or damaged everywhere

    def failed(self, wanted: Wanted, error: FarcallError) -> None:
        """An object could not be fetched."""
        if isinstance(error, NotFoundError | CorruptedError):
            # This says nothing about the others.
            if wanted.digest not in self._named and len(self._named) < _MOST:
                self._named.add(wanted.digest)
                self._log(f"{wanted.title} cannot be had: {error}; who opens it gets an input/output error")
            return
        self._failed += 1
        if self._since is None:
            self._since = self._clock()
            gets = os.strerror(errno_for(error)).lower()
            self._log(f"{wanted.title} cannot be fetched: {error}; who opens it until then gets: {gets}")

    def worked(self) -> None:
        """An object was fetched."""
        if self._since is not None:
            seconds = self._clock() - self._since
            self._log(f"missing files are fetched again: {self._failed:,} could not be opened in {seconds:.0f} s")
            self._since, self._failed = None, 0
