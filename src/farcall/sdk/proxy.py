"""`Proxy`: a fixed address for outgoing connections."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Proxy"]


class Proxy(Placeholder):
    """A fixed address that outgoing connections come from. Not available yet."""
