"""How errors are shown: the user's code, not ours; what and where it was; what to do next."""

import contextlib
import os
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

from farcall import errors
from farcall.cli.terminal import Style
from farcall.settings.paths import UnusableDirectoryError

_PLATFORM = (
    errors.ConnectionError,
    errors.VersionError,
    errors.ProtocolError,
    errors.InternalError,
    errors.AuthError,
    errors.ResourceExhaustedError,
)
_OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The runner's files, as a container sees them; and the import system.
_HIDDEN = re.compile(
    r"^<frozen (importlib|runpy)|[/\\]runner[/\\][^/\\]+[/\\][^/\\]+[/\\](farcall|msgspec|cloudpickle)[/\\]"
)


def exit_code(error: BaseException) -> int:
    """3 for what is not the program's doing, 130 for an interrupt, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 3 if isinstance(error, (*_PLATFORM, UnusableDirectoryError)) else 1


def report(error: BaseException, *, stream: TextIO | None = None, program: str | None = None) -> int:
    """Show an error on stderr and return the exit code.

    `program` is the file of the user's program where the error came from running it; errors of the platform, and those
    that no line of the user's had a part in, are one message without a traceback. `FARCALL_TRACEBACK=full` shows all.
    """
    if isinstance(error, BrokenPipeError) and _stdout_is_gone():
        return output_lost(error)
    out: TextIO = sys.stderr if stream is None else stream
    style = Style.of(out)
    full = os.environ.get("FARCALL_TRACEBACK") == "full"
    if isinstance(error, SyntaxError) and not full and not _has_user_frames(error):
        text = "".join(traceback.format_exception_only(error)).rstrip()
        print(style.red(text), file=out)
    elif full or (_has_user_frames(error) and not isinstance(error, _PLATFORM)):
        print(format_error(error, full=full), file=out, end="")
    elif isinstance(error, errors.FarcallError):
        print(f"{style.red('farcall:')} {str(error).removeprefix('farcall ')}", file=out)
    elif program is not None or isinstance(error, (OSError, ImportError)):
        print(style.red(f"{type(error).__name__}: {error}"), file=out)
    else:  # a defect of ours
        print(format_error(error, full=True), file=out, end="")
        print(f"{style.red('farcall:')} this is a defect of farcall; please report it with the lines above", file=out)
        return 3
    for line in _whereabouts(error):
        print(style.dim(line), file=out)
    out.flush()
    return exit_code(error)


def output_lost(error: OSError) -> int:
    """The exit code where stdout or stderr cannot be written; that nobody reads it (`| head`) is not worth a word."""
    if isinstance(error, BrokenPipeError):
        return 141  # as a shell says of what SIGPIPE has ended
    with contextlib.suppress(OSError):
        print(f"farcall: cannot write the output: {error.strerror or error}", file=sys.stderr, flush=True)
    return 1


def _stdout_is_gone() -> bool:
    """Whether the reader of our output (`| head`) has gone: the program's error is of no interest to anybody then."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def format_error(error: BaseException, *, full: bool = False) -> str:
    """The traceback as text, with that of its causes; without farcall's own frames unless `full`."""
    shown = traceback.TracebackException.from_exception(error, compact=True)
    if not full:
        _hide(shown, set())
    return "".join(shown.format())


def _hide(shown: traceback.TracebackException, seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    shown.stack[:] = [frame for frame in shown.stack if not is_ours(frame.filename)]
    inner = [shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())]
    for one in inner:
        if one is not None:
            _hide(one, seen)


def is_ours(filename: str) -> bool:
    """Whether a frame of this file is farcall's, or only leads on (imports, `with`): of no use to the user."""
    if filename.startswith(_OWN_FOLDER + os.sep) or filename == contextlib.__file__:
        return True
    return _HIDDEN.search(filename) is not None


def _has_user_frames(error: BaseException) -> bool:
    step: TracebackType | None = error.__traceback__
    while step is not None:
        if not is_ours(step.tb_frame.f_code.co_filename):
            return True
        step = step.tb_next
    return False


def _whereabouts(error: BaseException) -> list[str]:
    """Call and container of an error that happened in one, and the command that shows their logs."""
    call = getattr(error, "farcall_call_id", "") or ""
    container = getattr(error, "farcall_container_id", "") or ""
    if not call and not container:
        return []
    where = " ".join(part for part in (call and f"call {call}", container and f"in container {container}") if part)
    return [f"{where}; its logs: farcall logs {call or container}"]
