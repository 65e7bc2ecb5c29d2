"""`Server`: a class whose containers serve HTTP."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Server"]


class Server(Placeholder):
    """A class whose containers each run a server on a port. Not available yet."""
