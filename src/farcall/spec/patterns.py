"""Patterns of a .dockerignore file.

The rules are those of the Dockerfile reference, ".dockerignore file": `*` and `?` stay within a name, `[a-z]` is a
class, `**` crosses folders, a leading `!` takes matches out again, and the last pattern that matches counts. Slashes at
the ends mean nothing. What is under a folder that matches, matches.
"""

import posixpath
import re
from collections.abc import Iterable

from farcall.errors import InvalidError


class Patterns:
    """Says whether a path, relative to the folder that the patterns are for, matches. Raises InvalidError for a text
    that is no pattern."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(text for text in (line.strip() for line in texts) if text and not text.startswith("#"))
        self._runs: list[tuple[bool, re.Pattern[str]]] = []  # neighbours of one sign as one expression
        run: list[str] = []
        sign = True
        for text in self.texts:
            takes_in = not text.startswith("!")
            if run and takes_in != sign:
                self._runs.append((sign, _joined(run)))
                run = []
            sign = takes_in
            if expression := _expression(text):
                run.append(expression)
        if run:
            self._runs.append((sign, _joined(run)))

    def match(self, path: str) -> bool:
        """Whether the path matches."""
        for sign, expression in reversed(self._runs):
            if expression.fullmatch(path):
                return sign
        return False

    @property
    def has_exceptions(self) -> bool:
        """Whether something under a folder that matches may not match."""
        return not all(sign for sign, _ in self._runs)


def ignore_file(text: str) -> Patterns:
    """The patterns of a .dockerignore file, one on each line; a `#` in the first column begins a comment."""
    return Patterns(text.removeprefix("\ufeff").splitlines())


def _joined(expressions: list[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(expressions)})(?:/.*)?", re.DOTALL)


def _expression(text: str) -> str:
    """A pattern as a regular expression; "" for one that can match nothing."""
    pattern = text.removeprefix("!").strip()
    pattern = posixpath.normpath(pattern.lstrip("/") or ".")
    if pattern == ".":
        return ""
    made: list[str] = []
    place = 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            made.append("(?:.*/)?")
            place += 3
        elif pattern.startswith("**", place):
            made.append(".*")
            place += 2
        elif pattern[place] == "*":
            made.append("[^/]*")
            place += 1
        elif pattern[place] == "?":
            made.append("[^/]")
            place += 1
        elif pattern[place] == "[":
            end = pattern.find("]", place + 2)
            if end < 0:
                raise InvalidError(f"{text!r} is not a pattern: the [ is not closed; write \\[ for the letter")
            inside = pattern[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            made.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            place = end + 1
        elif pattern[place] == "\\" and place + 1 < len(pattern):
            made.append(re.escape(pattern[place + 1]))
            place += 2
        else:
            made.append(re.escape(pattern[place]))
            place += 1
    try:
        re.compile("".join(made))
    except re.error as error:
        raise InvalidError(f"{text!r} is not a pattern: {error}") from None
    return "".join(made)
