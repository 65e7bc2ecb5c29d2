"""Words of a Dockerfile: quotes, escapes and variables.

The rules are those of the Dockerfile reference, "Environment replacement": `$name` and `${name}`, the modifiers
`:-` `-` `:+` `+` `:?` `?` with a word, `#` `##` `%` `%%` with a pattern, `/` and `//` with a pattern and a replacement.
A variable that is not set is "". Nothing is expanded inside single quotes.
"""

import re
from collections.abc import Mapping

from farcall.errors import InvalidError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(word: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """The word without its quotes and escapes, and with the values of its variables.

    Raises InvalidError for a quote or a brace that is not closed, an unknown modifier, or `${name:?message}` of a
    variable that is not set.
    """
    text, _ = _Words(word, variables, escape).read(0, "")
    return text


def expand_text(text: str, variables: Mapping[str, str]) -> str:
    """A here-document's text with the values of its variables; quotes mean nothing in it."""
    return _Words(text, variables, "\\", quotes=False).read(0, "")[0]


class _Words:
    """One word being read."""

    def __init__(self, word: str, variables: Mapping[str, str], escape: str, *, quotes: bool = True) -> None:
        self._word = word
        self._variables = variables
        self._escape = escape
        self._quotes = quotes

    def read(self, place: int, end: str) -> tuple[str, int]:
        """The text from `place` to the first of the letters `end` that is not quoted, and the place of that."""
        word = self._word
        made: list[str] = []
        while place < len(word):
            letter = word[place]
            if letter in end:
                return "".join(made), place
            if letter == "'" and self._quotes:
                closing = word.find("'", place + 1)
                if closing < 0:
                    raise InvalidError(f"the quote ' is not closed in {word!r}")
                made.append(word[place + 1 : closing])
                place = closing + 1
            elif letter == '"' and self._quotes:
                text, place = self._double_quoted(place + 1)
                made.append(text)
            elif letter == self._escape:
                following = word[place + 1 : place + 2]
                if not self._quotes and following not in ("$", self._escape):
                    following = self._escape + following
                made.append(following)  # one at the very end is dropped
                place += 2
            elif letter == "$":
                text, place = self._variable(place + 1)
                made.append(text)
            else:
                made.append(letter)
                place += 1
        if end:
            raise InvalidError(f"there is no {' or '.join(end)} after ${{ in {word!r}")
        return "".join(made), place

    def _double_quoted(self, place: int) -> tuple[str, int]:
        word = self._word
        made: list[str] = []
        while place < len(word):
            letter = word[place]
            if letter == '"':
                return "".join(made), place + 1
            if letter == self._escape and word[place + 1 : place + 2] in ('"', "$", self._escape):
                made.append(word[place + 1 : place + 2])
                place += 2
            elif letter == "$":
                text, place = self._variable(place + 1)
                made.append(text)
            else:
                made.append(letter)
                place += 1
        raise InvalidError(f'the quote " is not closed in {word!r}')

    def _variable(self, place: int) -> tuple[str, int]:
        """What stands behind a dollar sign."""
        word = self._word
        if word[place : place + 1] != "{":
            name = _NAME.match(word, place)
            return ("$", place) if name is None else (self._variables.get(name[0], ""), name.end())
        name = _NAME.match(word, place + 1)
        if name is None:
            raise InvalidError(f"there is no name of a variable after ${{ in {word!r}")
        value = self._variables.get(name[0])
        place = name.end()
        modifier = next((one for one in _MODIFIERS if word.startswith(one, place)), None)
        if modifier is None:
            raise InvalidError(f"${{{name[0]}...}} is not closed, or modified in an unknown way, in {word!r}")
        place += len(modifier)
        if modifier == "}":
            return value or "", place
        if modifier in ("/", "//"):
            pattern, place = self.read(place, "/}")
            replacement = ""
            if word[place] == "/":
                replacement, place = self.read(place + 1, "}")
            expression = re.compile(_pattern(pattern, greedy=True), re.DOTALL)
            return expression.sub(lambda _: replacement, value or "", count=modifier == "/"), place + 1
        argument, place = self.read(place, "}")
        return self._modified(name[0], value, modifier, argument), place + 1

    def _modified(self, name: str, value: str | None, modifier: str, argument: str) -> str:
        is_set = bool(value) if modifier.startswith(":") else value is not None
        match modifier:
            case ":-" | "-":
                return value or "" if is_set else argument
            case ":+" | "+":
                return argument if is_set else ""
            case ":?" | "?":
                if not is_set:
                    raise InvalidError(f"{name}: {argument or 'is not set'}")
                return value or ""
            case "#" | "##":
                found = re.compile(_pattern(argument, greedy=modifier == "##"), re.DOTALL).match(value or "")
                return value or "" if found is None else (value or "")[found.end() :]
            case _:  # % and %%
                text = value or ""
                expression = re.compile(_pattern(argument, greedy=True), re.DOTALL)
                places = range(len(text), -1, -1) if modifier == "%" else range(len(text) + 1)
                return next((text[:start] for start in places if expression.fullmatch(text, start)), text)


_MODIFIERS = ("}", ":-", ":+", ":?", "##", "#", "%%", "%", "//", "/", "-", "+", "?")


def _pattern(text: str, *, greedy: bool) -> str:
    many = ".*" if greedy else ".*?"
    return "".join({"*": many, "?": "."}.get(letter) or re.escape(letter) for letter in text)
