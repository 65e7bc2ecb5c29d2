"""`interact`: a terminal in a running function."""

from __future__ import annotations

from farcall.sdk.unimplemented import refuse

__all__ = ["interact"]


def interact() -> None:
    """Attaches the caller's terminal to this container. Not available yet."""
    refuse("interact")
