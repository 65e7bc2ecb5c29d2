"""Errors in how a command was written: they end it with status 2."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class UsageError(Exception):
    """The command line is wrong. `str(error)` says what, and what would be right."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of `known`, or a list of them, or nothing."""
    from difflib import SequenceMatcher

    names = sorted(known)
    likeness = {name: 1.0 if name.startswith(word) else SequenceMatcher(None, word, name).ratio() for name in names}
    best = max(likeness.values(), default=0.0)
    if best >= 0.55:
        found = [name for name in names if likeness[name] > best - 0.1][:3]
        return f"; did you mean {' or '.join(repr(name) for name in found)}?"
    return f"; there are: {', '.join(names)}" if names else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": 32, **kwargs})


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and names the nearest option to an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse_unknown(unknown)
        return parsed

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
