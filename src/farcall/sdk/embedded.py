"""The embedded server: a process of its own that outlives the program that needed it first."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from farcall import errors, settings
from farcall.sdk.starting import start
from farcall.settings import flags


def program_settings() -> settings.Settings:
    """What the user has set for this program; for a command of farcall's, in the current folder."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__package__", None) == "farcall":
        return settings.load()
    return settings.load(folder=Path(path).absolute().parent)


def check_system() -> None:
    """Raises UnimplementedError on a system that has no containers."""
    if sys.platform != "linux":
        raise errors.UnimplementedError(
            f"farcall makes containers on Linux only, and this is {sys.platform}: use `farcall run --local FILE` to "
            "run every function in this process, or `farcall run --server ssh://user@host FILE` to run them on a Linux "
            "machine"
        )


def passed_on() -> dict[str, str]:
    """What a server that runs, or has crashed, was given on its command line, as variables for the next."""
    state = settings.paths().made_state
    return {} if state is None else flags.passed_on(state, os.environ)


def start_server(given: Mapping[str, str] = {}) -> None:
    """Starts the server and returns when it listens, or when another start got there first. `given` are variables for
    it, which count more than what this program's settings say.

    Raises UnimplementedError on a system that has no containers, InvalidError where a setting is wrong, ConnectionError
    where the server fails to start, with the end of its log.
    """
    check_system()
    environment = {**os.environ, **program_settings().of_server(), **given}
    start("farcall.server.main", (), settings.paths().server_log, "the farcall server", environment)
