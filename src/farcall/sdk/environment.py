"""`Environment`: a part of a workspace with objects of its own."""

from __future__ import annotations

from farcall.sdk.unimplemented import Placeholder, refuse

__all__ = ["Environment"]


class Environment(Placeholder):
    """A part of a workspace in which names are its own. Not available yet."""


def only_main(where: str, environment_name: str | None) -> None:
    """Raises UnimplementedError for an environment other than "main", the one there is; `where` is what it was given
    to."""
    if environment_name not in (None, "", "main"):
        refuse(f"{where}(environment_name={environment_name!r})")
