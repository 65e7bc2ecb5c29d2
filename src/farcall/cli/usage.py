"""Errors in how a command was written: they end it with status 2."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, cast


class UsageError(Exception):
    """The command line is wrong. `str(error)` says what, and what would be right."""


_LISTED = 20  # names in an error, at most


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of `known`, or a list of them, or nothing."""
    from difflib import SequenceMatcher

    names = sorted(known)
    likeness = {name: 1.0 if name.startswith(word) else SequenceMatcher(None, word, name).ratio() for name in names}
    best = max(likeness.values(), default=0.0)
    if best >= 0.55:
        found = [name for name in names if likeness[name] > best - 0.1][:3]
        return f"; did you mean {' or '.join(repr(name) for name in found)}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there are: {', '.join(names[:_LISTED])}{more}" if names else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": 32, **kwargs})


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and names the nearest option to an unknown one.

    With `program_follows` its options end at the first word that is none, or after the value of `-m`; what follows is a
    program with its own arguments, and goes to the namespace's `words` as it is.
    """

    program_follows = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        words: list[str] = list(sys.argv[1:] if args is None else args)
        end = self._end_of_options(words) if self.program_follows else len(words)
        parsed, unknown = self.parse_known_args(words[:end], namespace)
        if unknown:
            self._of(words).refuse_unknown(unknown)
        if self.program_follows:
            parsed.words = words[end:]
        return parsed

    def _of(self, words: list[str]) -> "Parser":
        """The parser of the command within this one that the words name, or this one."""
        for action in self._actions:
            choices: Any = action.choices
            commands = cast("dict[str, Parser]", choices) if isinstance(choices, dict) else {}
            for place, word in enumerate(words):
                if word in commands:
                    return commands[word]._of(words[place + 1 :])
        return self

    def _end_of_options(self, words: list[str]) -> int:
        position = 0
        while position < len(words) and words[position].startswith("-"):
            word = words[position]
            action = self._option_string_actions.get(word)
            position += 2 if action is not None and action.nargs is None else 1
            if word == "-m":
                break
        return position

    def refuse_unknown(self, unknown: list[str]) -> NoReturn:
        """Ends with status 2, naming what is not understood and the nearest option."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        first = unknown[0].partition("=")[0]
        hint = nearest(first, options) if first.startswith("-") else ""
        self.error(f"not understood: {' '.join(unknown)}{hint}")

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)
