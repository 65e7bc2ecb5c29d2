"""The reference API's `experimental` module. Its names exist; using one is `UnimplementedError`."""

from __future__ import annotations

from typing import Any

from farcall.sdk.decorators import clustered as clustered
from farcall.sdk.unimplemented import Later


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return Later(f"experimental.{name}")
