"""`Volume`: a file system that containers share."""

from __future__ import annotations

from typing import Any, Self

from farcall.sdk.unimplemented import Placeholder

__all__ = ["Volume"]


class Volume(Placeholder):
    """A file system that containers share and mount, stored under a name. Not available yet."""

    def with_mount_options(self, **options: Any) -> Self:
        """The same volume, mounted in another way."""
        return self

    def read_only(self) -> Self:
        """The same volume, mounted so that containers cannot write to it."""
        return self
