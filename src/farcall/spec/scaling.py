"""How many containers a function may have and is to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from farcall.errors import InvalidError

SCALEDOWN_RANGE = (2, 3600)  # seconds


class Scaling(msgspec.Struct, frozen=True):
    """Bounds of a function's pool of containers. `scaledown_window` is seconds."""

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0

    def changed(self, where: str, changes: Mapping[str, Any]) -> Scaling:
        """The same with some of the fields replaced; None stands for a field's default. `where` is for messages.

        Raises:
            InvalidError: an unknown field, a value outside its range, or a floor above the ceiling.
        """
        values = {name: _checked(where, name, value) for name, value in changes.items()}
        made = msgspec.structs.replace(self, **values)
        if made.max_containers is not None and made.min_containers > made.max_containers:
            raise InvalidError(
                f"{where}: min_containers={made.min_containers} is above max_containers={made.max_containers}"
            )
        return made


def _checked(where: str, name: str, value: Any) -> Any:
    if name not in Scaling.__struct_fields__:
        raise InvalidError(f"{where}: a pool of containers has no bound {name!r}")
    if value is None:
        return getattr(_DEFAULT, name)
    if name == "scaledown_window":
        return seconds_within(where, name, value, SCALEDOWN_RANGE)
    return at_least(where, name, value, 1 if name == "max_containers" else 0)


_DEFAULT = Scaling()


def seconds_within(where: str, name: str, value: Any, allowed: tuple[float, float]) -> float:
    """`value` as seconds. Raises InvalidError where it is no number or outside what is allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"{where}: {name}={value!r} is not a number of seconds")
    if not allowed[0] <= value <= allowed[1]:
        raise InvalidError(f"{where}: {name}={value} is outside {allowed[0]} to {allowed[1]} seconds")
    return float(value)


def at_least(where: str, name: str, value: Any, least: int) -> int:
    """`value` as a whole number. Raises InvalidError where it is none or below `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{where}: {name}={value!r} is not a whole number")
    if value < least:
        raise InvalidError(f"{where}: {name}={value} is below {least}")
    return value
