"""Where farcall keeps its files, and what the user has set. Imports `errors` only; nothing heavy."""

from farcall.settings.paths import Paths, paths
from farcall.settings.values import SETTINGS, Setting, Settings, Value, load

__all__ = ["SETTINGS", "Paths", "Setting", "Settings", "Value", "load", "paths"]
