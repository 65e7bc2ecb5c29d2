"""`Workspace`: members, tokens and settings."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Workspace"]


class Workspace(Placeholder):
    """Members, tokens and settings of those who share a server. Not available yet."""
