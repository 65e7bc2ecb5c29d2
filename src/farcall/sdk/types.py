"""The reference API's `types` module: the values that its methods return. Those of methods that are not there yet can
be named, and no more."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

from farcall.sdk.unimplemented import Placeholder


class SecretInfo(NamedTuple):
    """A stored secret, without its values. Times are in the local time zone."""

    name: str
    keys: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


class VolumeInfo(NamedTuple):
    """A volume. Times are in the local time zone."""

    name: str
    volume_id: str
    created_at: datetime
    updated_at: datetime


class FileEntryType(IntEnum):
    """What a name in a volume stands for."""

    UNSPECIFIED = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5


class FileEntry(NamedTuple):
    """A name in a volume. `path` is relative to the volume, `mtime` seconds since the epoch, `size` bytes."""

    path: str
    type: FileEntryType
    mtime: int
    size: int


class FunctionAutoscalerSettings(NamedTuple):
    """Bounds of a pool of containers. `scaledown_window` is seconds."""

    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window: float


class FunctionCurrentStats(NamedTuple):
    """What a pool of containers has to do, and what it has to do it with, at one moment."""

    backlog: int
    """Inputs that wait for a container."""
    num_total_runners: int
    """Containers that serve or are being started."""
    num_running_inputs: int
    """Inputs that containers have been given."""
    input_headroom: int
    """Inputs that the containers could take now."""


def __getattr__(name: str) -> Any:
    if not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    doc = f"The reference API's {name}. Not available yet."
    made = type(name, (Placeholder,), {"__doc__": doc, "__module__": __name__})
    globals()[name] = made
    return made
