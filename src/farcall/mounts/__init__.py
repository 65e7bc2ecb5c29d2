"""Trees of the content store as file systems that containers are mounted from."""

from farcall.mounts.mode import Mode, mode
from farcall.mounts.prepare import prepare, prepared

__all__ = ["Mode", "mode", "prepare", "prepared"]
