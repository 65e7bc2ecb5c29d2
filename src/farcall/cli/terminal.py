"""Colour where it is wanted, and the program's own stdout where progress is drawn below it."""

import os
from collections.abc import Callable
from typing import Any, TextIO


class Style:
    """Colours text, or leaves it as it is."""

    def __init__(self, colored: bool) -> None:
        self.colored = colored

    @classmethod
    def of(cls, stream: TextIO) -> "Style":
        """Colour on a terminal, unless NO_COLOR is set or TERM is "dumb"."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def red(self, text: str) -> str:
        return self._in("31", text)

    def green(self, text: str) -> str:
        return self._in("32", text)

    def yellow(self, text: str) -> str:
        return self._in("33", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colored else text


class SharedStream:
    """A text stream whose writes go through `around(text, write)`; in all else it is the stream it wraps."""

    def __init__(self, stream: TextIO, around: Callable[[str, Callable[[str], object]], None]) -> None:
        self._stream = stream
        self._around = around

    def write(self, text: str) -> int:
        def through(piece: str) -> None:
            self._stream.write(piece)
            self._stream.flush()

        self._around(text, through)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
