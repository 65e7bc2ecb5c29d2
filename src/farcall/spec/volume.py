"""What `volumes=` says, as values."""

import re

import msgspec

from farcall.errors import InvalidError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class VolumeSpec(msgspec.Struct, frozen=True):
    """A volume by its name, mounted at `path`; with `create_if_missing` an app that mounts it makes it."""

    name: str
    path: str
    create_if_missing: bool = False
    read_only: bool = False


def check_name(name: str) -> None:
    """Raises InvalidError for what cannot name a volume."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name!r} cannot name a volume: letters, digits, '.', '_' and '-', at most 64, none of '._-' first"
        )
