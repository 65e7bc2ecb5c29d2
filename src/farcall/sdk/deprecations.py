"""Warnings about old names and doubtful declarations: where the user wrote them, and not again in containers."""

from __future__ import annotations

import sys
import warnings

from farcall.errors import DeprecationError, FarcallWarning
from farcall.sdk.context import is_local

_said: set[str] = set()


def deprecated(message: str) -> None:
    """Says, once however often it is used, that a name is old, and what to write instead."""
    if message not in _said:
        _said.add(message)
        warn(message, DeprecationError)


def warn(message: str, category: type[FarcallWarning] = FarcallWarning) -> None:
    """Warns at the user's line, which is the first up the stack that is not farcall's own.

    In a container the same declarations run again: what there is to say was said where the program was started.
    """
    if not is_local():
        return
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    level = 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (
        "farcall",
        "importlib",
    ):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
