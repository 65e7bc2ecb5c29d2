"""Content passed on: what a machine has, and what it fetches for others from further away."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from farcall.content.attempts import TransientError
from farcall.content.tiers.store import StoreTier
from farcall.content.tiers.tier import Tier
from farcall.errors import CorruptedError, FarcallError, NotFoundError

KEPT_BYTES = 256 << 20  # of blobs that were fetched for others, in memory: what is fetched for here is in the store
KEPT_SECONDS = 60.0  # machines that start together want the same things within moments


class Passing:
    """Each blob is fetched once, however many ask, and kept for a while for those who ask next.

    What is fetched is checked first, so that nothing wrong is kept: an index in the store has to name it.
    """

    def __init__(self, own: StoreTier) -> None:
        self._own = own
        self._lock = threading.Lock()
        self._coming: dict[str, Future[bytes]] = {}
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # with when it came
        self._kept_bytes = 0

    def at_hand(self, name: str) -> bytes:
        """A blob that is here. Raises as `Tier.get`."""
        try:
            return self._own.get(name)
        except (NotFoundError, CorruptedError):
            with self._lock:
                if (kept := self._kept.get(name)) is not None:
                    return kept[1]
            raise

    def get(self, name: str, upstream: Sequence[Tier]) -> bytes:
        """A blob that is here, or in one of the tiers, which are asked in order. Raises as `Tier.get`."""
        try:
            return self.at_hand(name)
        except (NotFoundError, CorruptedError):
            pass
        with self._lock:
            coming = self._coming.get(name)
            is_ours = coming is None
            if coming is None:
                coming = self._coming[name] = Future()
        if is_ours:
            self._fetch(name, upstream, coming)
        return coming.result()

    def forget(self) -> None:
        """Let go of what has been kept for long enough. To be called now and then."""
        with self._lock:
            while self._kept and next(iter(self._kept.values()))[0] < time.monotonic() - KEPT_SECONDS:
                self._drop_first()

    def _fetch(self, name: str, upstream: Sequence[Tier], coming: Future[bytes]) -> None:
        try:
            data = self._from(name, upstream)
        except BaseException as error:
            with self._lock:
                del self._coming[name]
            coming.set_exception(error)
            return
        with self._lock:
            self._kept[name] = time.monotonic(), data
            self._kept_bytes += len(data)
            while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
                self._drop_first()
            del self._coming[name]
        coming.set_result(data)

    def _from(self, name: str, upstream: Sequence[Tier]) -> bytes:
        last: FarcallError | TransientError = NotFoundError(f"{name} is in no place further away")
        for tier in upstream:
            try:
                data = tier.get(name)
                self._own.check(name, data)
                return data
            except (FarcallError, TransientError) as error:
                if not isinstance(error, NotFoundError) or isinstance(last, NotFoundError):
                    last = error
        raise last

    def _drop_first(self) -> None:
        _, (_, data) = self._kept.popitem(last=False)
        self._kept_bytes -= len(data)
