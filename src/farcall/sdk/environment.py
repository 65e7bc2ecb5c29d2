"""`Environment`: a part of a workspace with objects of its own."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Environment"]


class Environment(Placeholder):
    """A part of a workspace in which names are its own. Not available yet."""
