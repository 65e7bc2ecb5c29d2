"""The command `farcall`. What a command needs is imported when that command runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from farcall.cli.usage import Parser, UsageError, nearest

OK, USER_ERROR, USAGE, PLATFORM, INTERRUPTED = 0, 1, 2, 3, 130


class Command(NamedTuple):
    """A command: where its `add_arguments(parser)` and `run(options) -> int` are, and what it does."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("init", "farcall.cli.init", "write a program to start from"),
    Command("run", "farcall.cli.run", "run a program's entrypoint or function"),
    Command("python", "farcall.cli.python", "run a plain script in which farcall can be imported"),
    Command("logs", "farcall.cli.logs", "show the logs of an app, a call or a container"),
    Command("app", "farcall.cli.app", "the apps that run, what they are doing, and their end"),
    Command("container", "farcall.cli.container", "the containers that run: inspect, enter, stop them"),
    Command("call", "farcall.cli.call", "spawned calls and those under way, their results, and their end"),
    Command("top", "farcall.cli.top", "everything that runs, live"),
    Command("secret", "farcall.cli.secret", "store environment variables that are not shown"),
    Command("volume", "farcall.cli.volume", "store files that containers share"),
    Command("config", "farcall.cli.config", "show settings and where they come from"),
    Command("profile", "farcall.cli.profile", "name servers on other machines"),
    Command("server", "farcall.cli.server", "start, stop and look at the local server"),
    Command("worker", "farcall.cli.worker", "let other machines run containers for a server, and be one of them"),
    Command("image", "farcall.cli.image", "list images, export, import and forget them"),
    Command("content", "farcall.cli.content", "look at the content store, verify it, clean it up"),
    Command("doctor", "farcall.cli.doctor", "find out what this machine offers, and what it lacks"),
    Command("completion", "farcall.cli.completion", "print the completion script of a shell"),
)

# These have settings as flags of their own; a program's words may follow them.
_CHOOSE_FOR_THEMSELVES = frozenset({"run", "python", "config", "completion", "init", "profile"})

_DESCRIPTION = "Run Python functions in containers: on this machine, and on others, as if they were local."
_EPILOG = """\
first steps:
  farcall init           write a program that works
  farcall run main.py    run it

on another machine:
  farcall run --server ssh://user@host main.py
  farcall profile add box ssh://user@host; farcall run --profile box main.py
  --server and --profile go with all commands that talk to a server.

exit codes: 0 success, 1 error in the program, 2 wrong usage, 3 error of the platform,
  130 interrupted, 141 nobody reads the output
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    status = _guarded(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # its reader has gone; Python would try again at its exit, and complain
            from farcall.cli.tracebacks import output_lost

            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status or output_lost(error)
    return status


def _guarded(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except SystemExit as ended:  # argparse: --help, or a usage error it has reported
        return ended.code if isinstance(ended.code, int) else OK
    except UsageError as error:
        print(f"farcall: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from farcall.cli.tracebacks import report

        return report(error)


def _dispatch(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    command = next((command for command in COMMANDS if command.name == name), None)
    if name is not None and command is None:
        raise UsageError(f"there is no command {name!r}{nearest(name, (command.name for command in COMMANDS))}")
    if command is None or words[0] != name:
        build_parser().parse_args(words)
        build_parser().print_help()
        return OK
    parser = Parser(prog=f"farcall {command.name}", description=command.help)
    if command.name not in _CHOOSE_FOR_THEMSELVES:
        words = _choose_server(words)
        if _is_about_files(words):
            from farcall.cli import elsewhere

            if elsewhere.url():
                return elsewhere.run_there(words)
    module = import_module(command.module)
    module.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = module.run
    return run(parser.parse_args(words[1:]))


def _choose_server(words: list[str]) -> list[str]:
    """Takes `--server` and `--profile` out of a command's words: they may stand anywhere in front of "--"."""
    end = words.index("--") if "--" in words else len(words)
    left: list[str] = []
    position = 0
    while position < end:
        flag, equals, value = words[position].partition("=")
        position += 1
        if flag not in ("--server", "--profile"):
            left.append(words[position - 1])
            continue
        if not equals:
            if position == end:
                raise UsageError(f"{flag} needs a value")
            value = words[position]
            position += 1
        os.environ[f"FARCALL_{flag[2:].upper()}"] = value
    return left + words[end:]


def _is_about_files(words: list[str]) -> bool:
    """Whether a command looks at files of the server's machine, and asks no server."""
    return words[0] in ("content", "doctor", "image") or words[:2] == ["server", "logs"]


def build_parser() -> Parser:
    """The parser of `farcall` itself, for its help: commands without their arguments."""
    from farcall.version import __version__

    parser = Parser(prog="farcall", description=_DESCRIPTION, epilog=_EPILOG, usage="farcall COMMAND ...")
    parser.add_argument("--version", action="version", version=f"farcall {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="")
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.help)
    return parser
