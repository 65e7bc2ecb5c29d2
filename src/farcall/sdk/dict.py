"""`Dict`: a dictionary that containers share."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Dict"]


class Dict(Placeholder):
    """A dictionary that containers share, stored under a name. Not available yet."""
