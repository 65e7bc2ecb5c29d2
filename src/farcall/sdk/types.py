"""The reference API's `types` module: the values that its methods return. None of those methods is there yet."""

from __future__ import annotations

from typing import Any

from farcall.sdk.unimplemented import Placeholder


def __getattr__(name: str) -> Any:
    if not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    doc = f"The reference API's {name}. Not available yet."
    made = type(name, (Placeholder,), {"__doc__": doc, "__module__": __name__})
    globals()[name] = made
    return made
