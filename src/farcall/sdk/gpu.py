"""The reference API's old `gpu` module: `gpu.A100(count=2, size="80GB")` is now the string "A100-80GB:2"."""

from __future__ import annotations

from collections.abc import Callable

from farcall.sdk.deprecations import deprecated


def __getattr__(name: str) -> Callable[..., str]:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def make(*, count: int = 1, size: str | None = None, memory: int | None = None) -> str:
        kind = "any" if name == "Any" else name
        if size or memory:
            kind += f"-{size or f'{memory}GB'}"
        text = kind if count == 1 else f"{kind}:{count}"
        deprecated(f'gpu.{name}(...) is now the string "{text}"')
        return text

    return make
