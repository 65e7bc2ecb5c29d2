"""Running the rest of a command under the project's interpreter, and saying which one that is."""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from farcall import _private, errors, settings
from farcall.cli.usage import UsageError
from farcall.interpreters import Choice, choose, details, is_own

_READ_BY_THE_SDK = frozenset(
    {
        "profile",
        "server",
        "ssh",
        "runtime",
        "traceback",
        "registry",
        "insecure_registries",
        "simulate_gpu",
        "map_memory",
    }
)


def settle(options: Mapping[str, bool | str | None], folder: Path) -> tuple[settings.Settings, Choice]:
    """Resolve the settings for a program in `folder`, and be in its interpreter: where that is another one than this,
    the process is replaced by the same command under it, and this does not return.

    What the SDK reads for itself becomes environment variables, wherever it was set.
    """
    try:
        found = settings.load(options, folder)
    except errors.InvalidError as error:
        raise UsageError(str(error)) from None
    os.environ.update(found.of_server())
    for setting in settings.SETTINGS:
        value = found.values[setting.name].value
        if setting.name in _READ_BY_THE_SDK and isinstance(value, str):
            os.environ[setting.variable] = value
    python = found.values["python"]
    named = python.origin.startswith(("flag", "environment"))
    try:
        choice = choose(
            found.python if named else None,
            Path.cwd() if named else folder,
            os.environ,
            origin="--python" if python.origin.startswith("flag") else "FARCALL_PYTHON",
            last=None if named else found.python,
        )
    except errors.InvalidError as error:
        raise UsageError(str(error)) from None
    if not _private.active() and not is_own(choice.executable):
        if _debugged():
            if not named:
                return found, Choice(sys.executable, f"the debugger's, not the {choice.reason}'s {choice.executable}")
            print(
                f"farcall: the debugger does not follow into {choice.executable} ({choice.reason}): launch it with "
                "that Python",
                file=sys.stderr,
            )
        from farcall.interpreters.private import enter

        enter(choice.executable, sys.argv[1:])
    if not found.local:
        found.warnings.extend(details(choice.executable).warnings)
    return found, choice


def _debugged() -> bool:
    """Whether something watches this process from inside, which would be lost were the process replaced."""
    if sys.gettrace() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None


def announcement(choice: Choice, compat: bool) -> str:
    """The first line of a run; on a terminal that is too narrow for it, one line for each thing that it says."""
    parts = [f"python: {choice.executable} ({choice.reason})", *["`import modal` gives farcall"] * compat]
    line = "; ".join(parts)
    width = shutil.get_terminal_size((0, 0)).columns if sys.stderr.isatty() else 0
    if not width or len(line) < width:
        return line
    if len(parts[0]) >= width:
        parts[:1] = [f"python: {choice.executable}", f"({choice.reason})"]
    return "\n  ".join(parts)


def prepare(found: settings.Settings) -> None:
    """Make this process what the settings say: `import modal` is farcall, functions run here. Warnings of farcall's
    are one line each."""
    _shorten_warnings()
    if found.compat:
        from farcall import compat

        compat.install()
    if found.local:
        from farcall.sdk import local

        local.use_local()


def _shorten_warnings() -> None:
    import warnings

    from farcall.errors import FarcallWarning

    usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, FarcallWarning):
            return f"{filename}:{lineno}: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def missing_module(error: ModuleNotFoundError, choice: Choice, compat: bool) -> str:
    """What to do about a module that the program's interpreter does not have."""
    name = error.name or ""
    if name.partition(".")[0] == "modal":
        if compat:
            return f"farcall: here `modal` is farcall, which has no module {name!r}; `import modal` and use its names"
        return (
            f"farcall: {choice.executable} ({choice.reason}) has no module {name!r}, and --no-compat (or compat = "
            "false) keeps `import modal` from giving farcall: leave that out"
        )
    return (
        f"farcall: {choice.executable} ({choice.reason}) has no module {name!r}. Install it there, or run the "
        "program with the Python that has it: farcall run --python PATH ..."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of all commands that run programs."""
    add = parser.add_argument
    add("--python", metavar="PYTHON", help="interpreter: a path, a venv's folder, or a version such as 3.12")
    add("--runtime", choices=("native", "process"), help="process: plain child processes, not isolated")
    add(
        "--compat",
        action=argparse.BooleanOptionalAction,
        help="`import modal` gives farcall (default; --no-compat: it does not)",
    )
    add("--local", action="store_true", default=None, help="run all functions in the program's own process")
    add("--simulate-gpu", metavar="TYPE=N", help="pretend to have GPUs, as T4=4,H100=8: for trying what goes where")
    add("--server", metavar="URL", help="run on another machine: ssh://user@host")
    add("--profile", metavar="NAME", help="profile of the config file")
    add("--quiet", "-q", action="store_true", default=None, help="show the program's own output and errors only")


def flags(options: argparse.Namespace) -> dict[str, bool | str | None]:
    """What of the settings the command line gave."""
    given = vars(options)
    return {setting.name: given.get(setting.name) for setting in settings.SETTINGS}
