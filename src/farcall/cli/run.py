"""`farcall run FILE[::NAME] [ARGS]`: an entrypoint in this process, or a function in a container."""

import argparse
import inspect
import sys
from types import ModuleType
from typing import Any

from farcall import errors
from farcall.cli import interpreter, script, signals
from farcall.cli.arguments import Arguments, parse
from farcall.cli.output import Renderer
from farcall.cli.tracebacks import output_lost, report
from farcall.cli.usage import Parser, UsageError
from farcall.sdk import watched


def add_arguments(parser: Parser) -> None:
    parser.usage = "farcall run [OPTIONS] FILE[::NAME] [ARGS]\n       farcall run [OPTIONS] -m MODULE[::NAME] [ARGS]"
    parser.epilog = (
        "NAME is an entrypoint, a function or Class.method; without it the only entrypoint runs, else the only\n"
        "function. ARGS are its parameters, as in --count 3 --dry-run; `farcall run FILE --help` lists them."
    )
    interpreter.add_arguments(parser)
    parser.add_argument("--detach", "-d", action="store_true", help="let the app go on when this command ends")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module of a package")
    parser.add_argument("--watch", action="store_true", help="run again whenever one of the program's files is saved")
    parser.program_follows = True


def run(options: argparse.Namespace) -> int:
    words: list[str] = options.words
    if options.module is not None:
        where = script.reference(options.module, is_module=True)
    elif words:
        where, words = script.reference(words[0]), words[1:]
    else:
        raise UsageError("what is to be run? Name a file (`farcall run main.py`), or make one with `farcall init`")
    if options.watch:
        return _watch(where, quiet=bool(options.quiet), detach=options.detach)
    settings, choice = interpreter.settle(interpreter.flags(options), where.folder)

    renderer = Renderer(sys.stdout, sys.stderr, quiet=settings.quiet)
    for warning in settings.warnings:
        renderer.say(f"farcall: {warning}")
    renderer.say(interpreter.announcement(choice, settings.compat))
    interpreter.prepare(settings)

    with signals.interruptible(), renderer.sharing_terminal():
        try:
            module = script.load(where, words)
        except (UsageError, KeyboardInterrupt):
            raise
        except SystemExit as ended:
            return status_of(ended)
        except BaseException as error:
            watched.tell_program(error)
            status = report(error, program=where.target)
            if isinstance(error, ModuleNotFoundError):
                print(interpreter.missing_module(error, choice, settings.compat), file=sys.stderr)
            elif isinstance(error, ImportError) and "no known parent package" in str(error) and not where.is_module:
                print(script.relative_import_hint(where), file=sys.stderr)
            return status
        watched.tell_program()
        chosen = _choose(module, where, words)
        if chosen is None:
            return 0
        program = f"farcall run {where}{'::' + where.name if where.name else ''}"
        arguments = parse(chosen.raw, words, program, method=chosen.kind == "method")
        return _Run(chosen, arguments, renderer, detach=options.detach).execute(where.target)


def _watch(where: script.Reference, *, quiet: bool, detach: bool) -> int:
    from farcall.cli import watch

    if detach:
        raise UsageError("--watch ends each run before the next: leave out --detach")
    paths = watch.first_paths(where.target, is_module=where.is_module)
    return watch.Watch(watch.command(), paths, quiet=quiet).run()


def status_of(ended: SystemExit) -> int:
    """The exit code that `sys.exit(...)` in a program asks for; a message it gives goes to stderr."""
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    print(ended.code, file=sys.stderr)
    return 1


def _choose(module: ModuleType, where: script.Reference, words: list[str]) -> script.Runnable | None:
    found = script.runnables(module)
    if words in (["--help"], ["-h"]) and not where.name and len(found) > 1:
        print(f"What farcall run {where} offers:\n\n{script.listing(found, where)}")
        return None
    if not where.name and not words and script.has_run(found):
        return None
    return script.select(found, where)


class _Run:
    """One run of an app: it begins, its function is called, it ends, however that goes."""

    def __init__(self, chosen: script.Runnable, arguments: Arguments, renderer: Renderer, *, detach: bool) -> None:
        self._chosen = chosen
        self._arguments = arguments
        self._renderer = renderer
        self._detach = detach
        self._app_id: str | None = None

    def execute(self, program: str) -> int:
        from farcall.sdk import output

        status, outcome = 0, "done"
        failure: BaseException | None = None
        before, output.listener = output.listener, self._renderer
        try:
            self._live()
        except KeyboardInterrupt:
            status, outcome = 130, "interrupted"
        except signals.Killed:
            signals.next_one_leaves()
            self._kill()
            status, outcome = 130, "killed"
        except SystemExit as ended:
            status = status_of(ended)
        except BaseException as error:
            outcome, failure = "failed", error
        finally:
            output.listener = before
        self._renderer.finish()
        if self._renderer.lost is not None:
            return output_lost(self._renderer.lost)
        if failure is not None:
            self._renderer.tell_once(failure)
            status = report(failure, program=program)
        if self._detach and self._app_id is not None:
            self._renderer.say(f"{self._app_id} goes on by itself; its logs: farcall logs {self._app_id}")
            self._renderer.say(f"to end it: farcall app stop {self._app_id}")
        self._renderer.say(self._renderer.end_line(outcome))
        return status

    def _live(self) -> None:
        app = self._chosen.app
        try:
            with app.run(detach=self._detach):
                self._app_id = app.app_id
                try:
                    self._call()
                finally:
                    if not self._detach:
                        self._ending(interrupted=isinstance(sys.exception(), KeyboardInterrupt))
        finally:
            self._renderer.ended()

    def _ending(self, *, interrupted: bool) -> None:
        from farcall.sdk.app import EXIT_GRACE

        # First this: a stream that is lost from here on interrupts nothing.
        self._renderer.ending(EXIT_GRACE, interrupted=interrupted)
        # An interrupt from here on comes while the app's end is awaited: it has been asked to stop, and may be killed.
        signals.next_one_kills()

    def _kill(self) -> None:
        from farcall.sdk import client

        if self._app_id is not None and (connected := client.connect_existing()) is not None:
            try:
                connected.stop_app(self._app_id, 0.0)
            except (errors.NotFoundError, errors.ConnectionError):
                pass  # it had ended already
            connected.close()

    def _call(self) -> None:
        kind, name, target = self._chosen.kind, self._chosen.name, self._chosen.object
        args, kwargs = self._arguments
        if kind == "entrypoint":
            result = target.raw(*args, **kwargs)
            if inspect.iscoroutine(result):
                import asyncio

                asyncio.run(result)
            return
        function: Any = getattr(target(), name.rpartition(".")[2]) if kind == "method" else target
        if function.info_of_code.is_generator:
            for item in function.remote_gen(*args, **kwargs):
                print(item)
            return
        result = function.remote(*args, **kwargs)
        if result is not None:
            print(result)
