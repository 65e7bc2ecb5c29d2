"""`FilePatternMatcher`: paths by the patterns of a .dockerignore file."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from farcall.errors import InvalidError

__all__ = ["FilePatternMatcher"]


class FilePatternMatcher:
    """Says whether a path matches patterns in the syntax of .dockerignore.

    `*` and `?` stay within a name, `**` crosses folders, `[a-z]` is a class, a leading `!` takes matches out again, and
    the last pattern that matches counts. What is under a matching folder matches. `~matcher` is the opposite.
    """

    def __init__(self, *pattern: str, inverted: bool = False) -> None:
        self.patterns = tuple(text for text in (line.strip() for line in pattern) if text and not text.startswith("#"))
        self._inverted = inverted
        for text in self.patterns:
            _expression(text.removeprefix("!"))

    @classmethod
    def from_file(cls, file_path: str | Path) -> FilePatternMatcher:
        """The patterns of a file, one on each line."""
        return cls(*Path(file_path).read_text(encoding="utf-8").splitlines())

    def can_prune_directories(self) -> bool:
        """Whether nothing under a matching folder can be taken out again."""
        return not self._inverted and not any(text.startswith("!") for text in self.patterns)

    def __call__(self, path: str | Path) -> bool:
        """Whether `path`, relative to the folder that is added, matches."""
        text = Path(path).as_posix().lstrip("/")
        parts = text.split("/")
        prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        matched = False
        for pattern in self.patterns:
            expression = _expression(pattern.removeprefix("!"))
            if any(expression.fullmatch(prefix) for prefix in prefixes):
                matched = not pattern.startswith("!")
        return matched != self._inverted

    def __invert__(self) -> FilePatternMatcher:
        return FilePatternMatcher(*self.patterns, inverted=not self._inverted)

    def __repr__(self) -> str:
        sign = "~" if self._inverted else ""
        return f"{sign}FilePatternMatcher({', '.join(map(repr, self.patterns))})"


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    text = pattern.strip("/")
    made: list[str] = []
    place = 0
    while place < len(text):
        if text.startswith("**/", place):
            made.append("(?:.*/)?")
            place += 3
        elif text.startswith("**", place):
            made.append(".*")
            place += 2
        elif text[place] == "*":
            made.append("[^/]*")
            place += 1
        elif text[place] == "?":
            made.append("[^/]")
            place += 1
        elif text[place] == "[" and (end := text.find("]", place + 2)) > 0:
            inside = text[place + 1 : end].replace("\\", "\\\\")
            made.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            place = end + 1
        elif text[place] == "\\" and place + 1 < len(text):
            made.append(re.escape(text[place + 1]))
            place += 2
        else:
            made.append(re.escape(text[place]))
            place += 1
    try:
        return re.compile("".join(made))
    except re.error as error:
        raise InvalidError(f"FilePatternMatcher: {pattern!r} is not a pattern: {error}") from None
