"""Trees of the content store as file systems that containers are mounted from."""

from farcall.mounts.prepare import prepare, prepared

__all__ = ["prepare", "prepared"]
