"""`farcall python FILE [ARGS]`: a plain script, as `python FILE` would run it, in which farcall can be imported."""

import argparse
import os
import sys
from types import ModuleType

from farcall.cli import interpreter, script, signals
from farcall.cli.run import status_of
from farcall.cli.tracebacks import report
from farcall.cli.usage import Parser, UsageError


def add_arguments(parser: Parser) -> None:
    parser.usage = "farcall python [OPTIONS] FILE [ARGS]"
    interpreter.add_arguments(parser)
    parser.program_follows = True


def run(options: argparse.Namespace) -> int:
    words: list[str] = options.words
    if not words:
        raise UsageError("what is to be run? Name a file: farcall python FILE")
    script.check_file(words[0])
    path = os.path.abspath(words[0])
    settings, choice = interpreter.settle(interpreter.flags(options), script.reference(words[0]).folder)
    if not settings.quiet:
        for warning in settings.warnings:
            print(f"farcall: {warning}", file=sys.stderr)
        print(interpreter.announcement(choice, settings.compat), file=sys.stderr)
    interpreter.prepare(settings)
    with signals.interruptible():
        try:
            _run_as_main(path, words)
        except SystemExit as ended:
            return status_of(ended)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            status = report(error, program=path)
            if isinstance(error, ModuleNotFoundError):
                print(interpreter.missing_module(error, choice, settings.compat), file=sys.stderr)
            return status
    return 0


def _run_as_main(path: str, words: list[str]) -> None:
    module = ModuleType("__main__")
    module.__file__ = path
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = words
    script.begin_path(os.path.dirname(path))
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)
