"""Starting the embedded server: a process of its own that outlives the program that needed it first."""

import os
import subprocess
import sys
from pathlib import Path

from farcall import _private, errors, settings


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
            "run every function in this process, or a server on a Linux machine"
        )


def start_server() -> None:
    """Starts the server and returns when it listens, or when another start got there first.

    Raises UnimplementedError on a system that has no containers, InvalidError where a setting is wrong, ConnectionError
    where the server fails to start, with the end of its log.
    """
    check_system()
    environment = os.environ | program_settings().of_server()
    executable, root = _private.home()
    log_path = settings.paths().server_log
    ready, announce = os.pipe()
    try:
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [executable, "-P", "-c", _PROGRAM, str(announce), root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(announce,),
                start_new_session=True,
                cwd="/",
                env=environment,
            )
        os.close(announce)
        announce = -1
        # The server writes one line, "ready" or why it cannot serve; a crash closes the pipe.
        with os.fdopen(ready, "rb") as pipe:
            ready = -1
            word = pipe.read().decode(errors="replace")
    except OSError as error:
        raise errors.ConnectionError(f"the farcall server could not be started: {error}") from error
    finally:
        for fd in (ready, announce):
            if fd >= 0:
                os.close(fd)
    if word == "ready":
        # It is nobody's child from here on; Popen would warn of that when it is collected.
        process.returncode = 0
        return
    process.wait()
    if word.startswith("conflict"):
        return
    if word:
        code, _, message = word.partition(" ")
        raise errors.from_code(code, message)
    raise errors.ConnectionError(
        f"the farcall server ended while starting; the end of {log_path}:\n{_tail(str(log_path))}"
    )


# A farcall that is not installed but found by other means (a checkout on PYTHONPATH, a sys.path of the program's own)
# must be found by the server too.
_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv[2])
from farcall.server.main import main
main(int(sys.argv[1]))
"""


def _tail(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2000))
        return file.read().decode(errors="replace").strip() or "(empty)"
