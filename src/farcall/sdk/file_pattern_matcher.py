"""`FilePatternMatcher`: paths by the patterns of a .dockerignore file."""

from __future__ import annotations

from pathlib import Path

from farcall.spec.patterns import Patterns

__all__ = ["FilePatternMatcher"]


class FilePatternMatcher:
    """Says whether a path matches patterns in the syntax of .dockerignore.

    `*` and `?` stay within a name, `**` crosses folders, `[a-z]` is a class, a leading `!` takes matches out again, and
    the last pattern that matches counts. What is under a matching folder matches. `~matcher` is the opposite.
    """

    def __init__(self, *pattern: str, inverted: bool = False) -> None:
        self._patterns = Patterns(pattern)
        self._inverted = inverted

    @classmethod
    def from_file(cls, file_path: str | Path) -> FilePatternMatcher:
        """The patterns of a file, one on each line."""
        return cls(*Path(file_path).read_text(encoding="utf-8-sig").splitlines())

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, without comments."""
        return self._patterns.texts

    def can_prune_directories(self) -> bool:
        """Whether nothing under a matching folder can be taken out again."""
        return not self._inverted and not self._patterns.has_exceptions

    def __call__(self, path: str | Path) -> bool:
        """Whether `path`, relative to the folder that is added, matches."""
        return self._patterns.match(Path(path).as_posix().lstrip("/")) != self._inverted

    def __invert__(self) -> FilePatternMatcher:
        return FilePatternMatcher(*self.patterns, inverted=not self._inverted)

    def __repr__(self) -> str:
        sign = "~" if self._inverted else ""
        return f"{sign}FilePatternMatcher({', '.join(map(repr, self.patterns))})"
