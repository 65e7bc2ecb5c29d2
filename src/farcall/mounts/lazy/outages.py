"""What is said when objects cannot be fetched: one line when it begins, one when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from farcall.errors import CorruptedError, FarcallError, NotFoundError, ResourceExhaustedError
from farcall.mounts.lazy.index import Wanted

_MOST = 100  # objects that are named one by one


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
            gets = "no space left on device" if isinstance(error, ResourceExhaustedError) else "an input/output error"
            self._log(f"{wanted.title} cannot be fetched: {error}; who opens it until then gets {gets}")

    def worked(self) -> None:
        """An object was fetched."""
        if self._since is not None:
            seconds = self._clock() - self._since
            self._log(f"missing files are fetched again: {self._failed:,} could not be opened in {seconds:.0f} s")
            self._since, self._failed = None, 0
