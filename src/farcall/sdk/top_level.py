"""Programs that run their app at their module's top level, where a container that imports the module would, too."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Any

from farcall.errors import FarcallWarning

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.cls import Cls
    from farcall.sdk.function import Function


def importing() -> FrameType | None:
    """The frame of the user's module whose top level has led here, None where there is none."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        package = str(frame.f_globals.get("__package__") or "")
        if frame.f_code.co_name == "<module>" and package.partition(".")[0] != "farcall":
            return frame
        frame = frame.f_back
    return None


def warn_unless_guarded(app: App) -> None:
    """Warns where the module that runs the app now would do the same in containers, which import it.

    Said here, and not by the containers, of which there may be many.
    """
    frame = importing()
    if frame is None:
        return
    module = frame.f_globals.get("__name__")
    if not any(
        _comes_from(module, member) for member in (*app.registered_functions.values(), *app.registered_classes.values())
    ):
        return
    if not _is_guarded(frame.f_code.co_filename, frame.f_lineno):
        warnings.warn_explicit(
            "the module runs its app when it is imported; in containers the import ends here. Write "
            '`if __name__ == "__main__":` above `with app.run():`',
            FarcallWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
        )


def _comes_from(module: str | None, member: Function[..., Any, Any] | Cls[..., Any]) -> bool:
    return not member.declaration.serialized and getattr(member.raw, "__module__", None) == module


def _is_guarded(path: str, number: int) -> bool:
    """Whether the line stands under an `if` that does not hold in a container."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:  # a notebook's cell
        return True
    depth = _depth(lines[number - 1]) if number <= len(lines) else 0
    for line in reversed(lines[: number - 1]):
        if depth == 0:
            return False
        if line.strip() and _depth(line) < depth:
            depth = _depth(line)
            if line.lstrip().startswith("if ") and ("__name__" in line or "is_local()" in line):
                return True
    return False


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
