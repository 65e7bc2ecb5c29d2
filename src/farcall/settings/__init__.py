"""Where farcall keeps its files, and what the user has set. Imports `errors` only; nothing heavy."""

from farcall.settings.paths import Paths, paths

__all__ = ["Paths", "paths"]
