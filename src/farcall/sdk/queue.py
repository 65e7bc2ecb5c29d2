"""`Queue`: a queue that containers share."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Queue"]


class Queue(Placeholder):
    """A queue with partitions that containers share, stored under a name. Not available yet."""
