"""`NetworkFileSystem`: the older kind of shared file system."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder

__all__ = ["NetworkFileSystem"]


class NetworkFileSystem(Placeholder):
    """The older kind of shared file system; a Volume takes its place. Not available yet."""
