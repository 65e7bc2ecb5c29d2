"""Secrets: environment variables whose values are not shown."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from farcall.errors import InvalidError

MAX_BYTES = 64 * 1024  # of a secret's names and values together: they must fit a frame, and a container's start

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretSpec(msgspec.Struct, frozen=True):
    """Environment variables of containers: `values`, or those of the stored secret `name` at the time a container
    starts, `required_keys` among them. No representation shows values."""

    name: str = ""
    required_keys: tuple[str, ...] = ()
    values: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SecretSpec({self.name!r}, {self.required_keys!r}, values of {', '.join(self.values) or 'nothing'})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name), ("required_keys", self.required_keys), ("values", tuple(self.values))]


def check_values(what: str, values: Mapping[str, str]) -> None:
    """Raises InvalidError, which names `what` and the key but no value, where these cannot be environment variables."""
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            raise InvalidError(
                f"{what}: {key!r} cannot name an environment variable: letters, digits and '_', no digit first"
            )
        if "\0" in value:
            raise InvalidError(f"{what}: the value of {key} has a zero byte, which no environment variable can hold")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidError(f"{what}: the value of {key} is no text that UTF-8 can carry") from None
    size = sum(len(key) + len(value.encode()) for key, value in values.items())
    if size > MAX_BYTES:
        raise InvalidError(
            f"{what} has {size:,} bytes; the limit is {MAX_BYTES:,}. Keep what is larger in a file that containers see"
        )
