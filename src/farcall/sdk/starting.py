"""Starting processes of farcall's own, which outlive the program that needed them first."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from farcall import _private, errors
from farcall.sdk import events, output

NOTICE = "notice "  # a line with what is being done

# A farcall that is not installed but found by other means (a checkout on PYTHONPATH, a sys.path of the program's own)
# must be found by the process too.
_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv[2])
from {module} import main
main(int(sys.argv[1]), *sys.argv[3:])
"""


def start(
    module: str, arguments: Sequence[str], log_path: Path, name: str, environment: Mapping[str, str] | None = None
) -> None:
    """Starts `main(announce, *arguments)` of a module, and returns when it says that it is ready, or that another start
    got there first. `name` is what messages call it.

    Raises the error that it announces, ConnectionError where it ends without a word, with the end of its log.
    """
    executable, root = _private.home()
    ready, announce = os.pipe()
    try:
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [executable, "-P", "-c", _PROGRAM.format(module=module), str(announce), root, *arguments],
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
        # It writes what it is about, and in the end "ready" or why it cannot serve; a crash closes the pipe.
        with os.fdopen(ready, "rb") as pipe:
            ready = -1
            word = ""
            for line in pipe:
                text = line.decode(errors="replace")
                if word or not text.startswith(NOTICE):
                    word += text
                else:
                    output.emit(events.Notice(text.removeprefix(NOTICE).strip()))
    except OSError as error:
        raise errors.ConnectionError(f"{name} could not be started: {error}") from error
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
    raise errors.ConnectionError(f"{name} ended while starting; the end of {log_path}:\n{_tail(str(log_path))}")


def _tail(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2000))
        return file.read().decode(errors="replace").strip() or "(empty)"
