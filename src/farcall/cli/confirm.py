"""Questions before something is gone for good."""

import argparse
import sys

from farcall.cli.usage import UsageError


def add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def confirm(question: str, *, yes: bool) -> bool:
    """Whether to go on: by `--yes`, or the answer on the terminal. Without both it is a usage error."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to ask: say --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
