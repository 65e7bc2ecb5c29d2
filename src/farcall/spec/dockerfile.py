"""Dockerfiles: from text to instructions, each with the line it begins on.

The grammar is that of the Dockerfile reference (syntax 1): parser directives, comments, continued lines, flags,
here-documents, and arguments in the form of words or of a JSON list. What an instruction means is `spec.stages`'.
"""

import difflib
import json
import re
from typing import Any, NamedTuple

from farcall.errors import InvalidError

INSTRUCTIONS = (
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)
_WITH_HEREDOCS = ("RUN", "COPY", "ADD")
_SHOWN = 80  # characters of a line in an error

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?=\s|$)")
_HEREDOC = re.compile(r"\d*<<(-?)([\"']?)([A-Za-z0-9_.]+)\2")


class Heredoc(NamedTuple):
    """A here-document. `expand`: its name was not quoted, so that variables in it count."""

    name: str
    text: str
    expand: bool
    strip_tabs: bool = False


class Instruction(NamedTuple):
    """One instruction. `text` is what follows its name and flags, on one line; `original` the lines as they are, for
    messages. The same flag may be given several times."""

    line: int
    name: str
    flags: tuple[tuple[str, str], ...]
    text: str
    heredocs: tuple[Heredoc, ...]
    original: str
    place: str  # "Dockerfile", for messages
    escape: str

    def error(self, why: str) -> InvalidError:
        """What to raise for this instruction."""
        first = self.original.partition("\n")[0].strip()
        shown = first if len(first) <= _SHOWN else first[: _SHOWN - 3] + "..."
        return InvalidError(f"{self.place}, line {self.line}: {why}\n    {shown}")

    def as_list(self) -> tuple[str, ...] | None:
        """The arguments of the exec form, `["a", "b"]`; None where it is not that."""
        if not self.text.startswith("["):
            return None
        try:
            found: Any = json.loads(self.text)
        except ValueError:
            return None
        return tuple(found) if all(isinstance(word, str) for word in found) else None

    def words(self) -> tuple[str, ...]:
        """The arguments, separated by blanks, with their quotes and escapes still in them."""
        try:
            return tuple(split(self.text, self.escape))
        except ValueError as error:
            raise self.error(str(error)) from None

    def pairs(self) -> dict[str, str]:
        """The arguments as `name=value ...`, or in the old form `name value`; words as `words` gives them."""
        words = self.words()
        if not words:
            raise self.error(f"{self.name} needs name=value")
        if "=" not in words[0]:
            name, *rest = self.text.split(None, 1)
            if not rest:
                raise self.error(f"{self.name} {name} has no value: write {name}=value")
            return {name: rest[0]}
        found: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise self.error(f"{word!r} is not name=value; a value with blanks needs quotes")
            if not name:
                raise self.error(f"{word!r} has no name before the =")
            found[name] = value
        return found


def split(text: str, escape: str = "\\") -> list[str]:
    """Words of a line, separated by blanks that are neither quoted nor escaped, each as it stands there.

    Raises ValueError for a quote that is not closed.
    """
    words: list[str] = []
    word: list[str] = []
    quote = ""
    place = 0
    while place < len(text):
        letter = text[place]
        if letter == escape and quote != "'":
            word.append(text[place : place + 2])
            place += 2
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter.isspace():
            if word:
                words.append("".join(word))
                word = []
            place += 1
            continue
        word.append(letter)
        place += 1
    if quote:
        raise ValueError(f"the quote {quote} is not closed")
    return [*words, "".join(word)] if word else words


def parse(text: str, place: str = "Dockerfile") -> list[Instruction]:
    """The instructions of a Dockerfile, or of lines of one; `place` is its name in messages.

    Raises InvalidError, with line and text, for an unknown instruction, a flag or here-document that is not ended, and
    an unknown escape character.
    """
    return _Reader(text, place).read()


class _Reader:
    """A Dockerfile being read, line by line."""

    def __init__(self, text: str, place: str) -> None:
        self._lines = text.removeprefix("\ufeff").splitlines()
        self._place = place
        self._next = 0
        self._escape = "\\"

    def read(self) -> list[Instruction]:
        self._directives()
        found: list[Instruction] = []
        while self._next < len(self._lines):
            line = self._lines[self._next].strip()
            if not line or line.startswith("#"):
                self._next += 1
            else:
                found.append(self._instruction())
        return found

    def _directives(self) -> None:
        """Lines `# name=value` at the very top; the first line that is none ends them."""
        for number, line in enumerate(self._lines):
            found = _DIRECTIVE.fullmatch(line.strip())
            if found is None:
                return
            if found[1].lower() == "escape":
                if found[2] not in ("\\", "`"):
                    raise InvalidError(
                        f"{self._place}, line {number + 1}: the escape character is \\ or `, not {found[2]!r}"
                    )
                self._escape = found[2]

    def _instruction(self) -> Instruction:
        first = self._next
        name, *rest = self._continued().split(None, 1)
        original = "\n".join(self._lines[first : self._next])
        text = rest[0].strip() if rest else ""
        made = Instruction(first + 1, name.upper(), (), text, (), original, self._place, self._escape)
        if made.name == "ONBUILD":
            raise made.error(
                "ONBUILD is not supported: its instruction belongs into the Dockerfile that builds on this one"
            )
        if made.name not in INSTRUCTIONS:
            near = difflib.get_close_matches(made.name, INSTRUCTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(INSTRUCTIONS)}"
            raise made.error(f"there is no instruction {made.name}; {hint}")
        made = self._with_flags(made)
        if made.name in _WITH_HEREDOCS and made.as_list() is None:
            made = self._with_heredocs(made, first)
        if not made.text and made.name not in ("CMD", "ENTRYPOINT"):
            raise made.error(f"{made.name} has no argument")
        return made

    def _continued(self) -> str:
        """The instruction's lines as one. Comments and empty lines between continued ones are no part of it."""
        parts: list[str] = []
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if parts and (not line.strip() or line.lstrip().startswith("#")):
                continue
            bare = line.rstrip()
            if not bare.endswith(self._escape):
                parts.append(line)
                break
            parts.append(bare.removesuffix(self._escape))
        return "".join(parts)

    def _with_flags(self, made: Instruction) -> Instruction:
        flags: list[tuple[str, str]] = []
        text = made.text
        while text.startswith("--"):
            found = _FLAG.match(text)
            if found is None:
                raise made.error(f"{text.split()[0]!r} is no flag")
            flags.append((found[1], found[2] if found[2] is not None else "true"))
            text = text[found.end() :].lstrip()
        return made._replace(flags=tuple(flags), text=text)

    def _with_heredocs(self, made: Instruction, first: int) -> Instruction:
        try:
            words = split(made.text, self._escape)
        except ValueError:
            return made  # the shell's own quoting may be another
        heredocs: list[Heredoc] = []
        for word in words:
            if (found := _HEREDOC.fullmatch(word)) is not None:
                heredocs.append(self._heredoc(made, found[3], not found[2], bool(found[1])))
        original = "\n".join(self._lines[first : self._next])
        return made._replace(heredocs=tuple(heredocs), original=original) if heredocs else made

    def _heredoc(self, made: Instruction, name: str, expand: bool, strip_tabs: bool) -> Heredoc:
        lines: list[str] = []
        for line in self._lines[self._next :]:
            self._next += 1
            shown = line.lstrip("\t") if strip_tabs else line
            if shown == name:
                return Heredoc(name, "".join(f"{each}\n" for each in lines), expand, strip_tabs)
            lines.append(shown)
        raise made.error(f"the here-document <<{name} does not end: there is no line {name} after it")


def is_heredoc(word: str) -> bool:
    """Whether a word of an instruction stands for one of its here-documents."""
    return _HEREDOC.fullmatch(word) is not None
